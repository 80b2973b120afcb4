"""Offspring that stand alone: one network of a supernetwork as a model of its own, and as a file (section 5.3)."""

from __future__ import annotations

import json
import operator
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, fx, nn

from recombine.core.errors import ConfigError
from recombine.core.files import replacing
from recombine.models import Model, zoo
from recombine.models.freeze import digest
from recombine.models.model import Preprocess
from recombine.stitch.parents import Parent
from recombine.stitch.supernetwork import STITCH, Read, StitchPoint, Supernetwork

__all__ = ["export", "load", "offspring_card", "read_card", "save"]

FORMAT = 1
CARD = {"parents": list, "on": list, "output": int, "name": str, "format": int}
"""What every card says, and how; the rest is there to be read."""
DAMAGE = (TypeError, ValueError, KeyError, IndexError, AttributeError, RuntimeError, StopIteration)
"""What building an offspring from a file raises if the file is not as `save` left it."""


def export(net: Supernetwork, genotype: np.ndarray, name: str = "offspring", *, merged: bool = True) -> Model:
    """The network of a genotype with copies of what it needs and nothing else: uint8 images in, logits out.

    `merged` False: the inner network (`.net`) of an ensemble gives both parents' logits in place of their mean.
    """
    genotype = net.phenotype(net.checked(genotype))
    root = nn.Module()
    root.a, root.b = net.nets
    root.renormalise = net.renormalise
    # stitches are numbered in the order of the genes that are on, so that a file need not know the others
    places = {gene: place for place, gene in enumerate(np.flatnonzero(genotype[:-1]).tolist())}
    root.stitches = nn.ModuleDict({str(place): net.stitches[gene] for gene, place in places.items()})
    graph, outputs = _graph(net, genotype, places)
    if merged and len(outputs) > 1:
        total = graph.call_function(operator.add, tuple(outputs))
        outputs = [graph.call_function(operator.truediv, (total, len(outputs)))]
    graph.output(outputs[0] if merged else tuple(outputs))
    parents = [parent.model for parent in net.parents]
    return Model(
        deepcopy(fx.GraphModule(root, graph)),
        deepcopy(net.preprocess),
        name=name,
        classes=parents[0].classes,
        architecture="offspring",
        options={"parents": [model.name for model in parents], "output": int(genotype[-1]), "stitches": len(places)},
        tag=f"stitched from {parents[0].tag} and {parents[1].tag}",
    ).eval()


def _graph(net: Supernetwork, genotype: np.ndarray, places: dict[int, int]) -> tuple[fx.Graph, list[fx.Node]]:
    """The steps of a genotype as a graph, and the nodes of its one or two logits; `places` number its stitches."""
    graph = fx.Graph()
    images = graph.placeholder("images")
    made: dict[int, fx.Node] = {}

    def value(read: Read) -> fx.Node:
        return made[read.stitched if read.gene >= 0 and genotype[read.gene] else read.own]

    for vertex in net.needed(genotype)[0]:
        side, what, reads, _ = net.vertices[vertex]
        if side == STITCH:
            made[vertex] = graph.call_module(f"stitches.{places[what]}", (value(reads[0]),))
        elif what.op == "placeholder":
            other = side == 1 and not net.renormalise.same
            made[vertex] = graph.call_module("renormalise", (images,)) if other else images
        else:
            values = dict(zip(what.all_input_nodes, map(value, reads), strict=True))
            made[vertex] = graph.node_copy(what, values.__getitem__)
            if what.op in ("call_module", "get_attr"):
                made[vertex].target = f"{'ab'[side]}.{what.target}"
    return graph, [value(read) for read in net.roots[genotype[-1]]]


def save(
    net: Supernetwork,
    genotype: np.ndarray,
    path: str | Path,
    *,
    name: str = "offspring",
    trained: Model | None = None,
    **facts: Any,
) -> Path:
    """Write an offspring with a card: its parents (by digest), which nodes hand over to which, and `facts`.

    `trained`: the exported offspring, where its weights are no longer those of the supernetwork.
    """
    genotype = net.phenotype(net.checked(genotype))
    on = []
    for gene in np.flatnonzero(genotype[:-1]).tolist():
        pair = net.pairs[gene // 2]
        on.append({"into": "ab"[gene % 2], "a": pair.a.name, "b": pair.b.name})
    parents = [{**parent.model.description(), "digest": digest(parent.model)} for parent in net.parents]
    card = {"format": FORMAT, "name": name, "parents": parents, "on": on, "output": int(genotype[-1]), **facts}
    state = (trained or export(net, genotype)).net.state_dict()
    path = Path(path)
    with replacing(path) as temporary:
        tensors = {key: value.detach().to("cpu", copy=True).contiguous() for key, value in state.items()}
        save_file(tensors, temporary, {"offspring": json.dumps(card)})
    return path


def read_card(path: str | Path) -> dict[str, Any]:
    """The card of an offspring file; ConfigError if it is none."""
    return _read(path)[0]


def offspring_card(path: str | Path) -> dict[str, Any] | None:
    """The card of an offspring file; None if there is no such file or it is something else."""
    if not (Path(path).suffix == ".safetensors" and Path(path).is_file()):
        return None
    try:
        with safe_open(path, "pt") as file:
            if "offspring" not in (file.metadata() or {}):
                return None
    except (OSError, SafetensorError):
        return None
    return read_card(path)


def load(path: str | Path) -> Model:
    """The offspring of a file, a frozen `Model` in eval mode; its parents' weights are not needed.

    ConfigError if the file is none, is damaged, or was made with a library whose networks look different.
    """
    card, tensors = _read(path)
    try:
        net, genotype = _rebuilt(card)
        model = export(net, genotype, card["name"])
        model.net.load_state_dict(tensors)
    except (*DAMAGE, ConfigError) as error:
        raise ConfigError(
            f"{path} is damaged, or was made with other versions of the libraries its parents come from: {error}"
        ) from error
    return model.requires_grad_(False)


def _read(path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get("offspring")
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{path} cannot be read as an offspring: {error}") from error
    if text is None:
        raise ConfigError(f"{path} is no offspring file; main_stitch.py writes them")
    try:
        card = json.loads(text)
        wrong = [key for key, kind in CARD.items() if not isinstance(card.get(key), kind)]
    except (ValueError, AttributeError) as error:
        raise ConfigError(f"{path} is damaged: its card is no JSON object ({error})") from error
    if wrong or card["format"] != FORMAT:
        raise ConfigError(
            f"{path} is damaged or of a newer version: its card does not say {', '.join(wrong) or 'format 1'}"
        )
    return card, tensors


def _rebuilt(card: dict[str, Any]) -> tuple[Supernetwork, np.ndarray]:
    """A supernetwork of random weights with the pairs that the offspring uses, and its genotype in it."""
    parents = tuple(Parent(_random(about)) for about in card["parents"])
    named = [{node.name: node for node in parent.graph.nodes} for parent in parents]
    pairs = list(dict.fromkeys((gene["a"], gene["b"]) for gene in card["on"]))
    net = Supernetwork(parents, [StitchPoint(named[0][a], named[1][b]) for a, b in pairs])
    genotype = np.zeros_like(net.genotype)
    for gene in card["on"]:
        genotype[2 * pairs.index((gene["a"], gene["b"])) + "ab".index(gene["into"])] = 1
    genotype[-1] = card["output"]
    return net, genotype


def _random(about: dict[str, Any]) -> Model:
    """A parent as its description says, with random weights."""
    with torch.random.fork_rng(devices=[]):
        net = zoo.create(about["architecture"], about["options"], classes=about["classes"], pretrained=False).net
    keys = ("size", "mean", "std", "crop_pct", "interpolation")
    facts = {key: about[key] for key in ("name", "classes", "architecture", "options", "tag")}
    return Model(net, Preprocess(**{key: about[key] for key in keys}), **facts)
