"""Offspring by themselves: one network of a supernetwork as a `Model`, and as a file."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from recombine.core.errors import ConfigError
from recombine.models import Model, serialization, zoo
from recombine.models.freeze import digest
from recombine.models.model import Preprocess
from recombine.models.serialization import DAMAGE, kind_of, read_artifact, write_artifact
from recombine.models.weight_files import check_description
from recombine.stitch.parents import Parent
from recombine.stitch.recalibration import recalibrate
from recombine.stitch.search.space import ENSEMBLE
from recombine.stitch.supernetwork import StitchPoint, Supernetwork
from recombine.stitch.vertices import Operand

__all__ = ["export", "load", "offspring_card", "read_card", "save"]

KIND = "offspring"
FORMAT = 1
CARD = {"parents": list, "on": list, "output": int, "name": str}
"""What every card holds; other keys are informative."""


def export(
    net: Supernetwork,
    genotype: np.ndarray,
    name: str = "offspring",
    *,
    merged: bool = True,
    calibration: Sequence[Tensor] = (),
) -> Model:
    """The network of a genotype with copies of what it needs and nothing else: uint8 images in, logits out.

    `merged` False: the inner network (`.net`) of an ensemble gives both parents' logits in place of their mean.
    `calibration`: batches of images on which BatchNorms behind stitches estimate their statistics.
    """
    genotype = net.phenotype(net.check_genotype(genotype))
    # stitches are numbered in the order of the genes that are on, so that a file need not know the others
    places = {gene: place for place, gene in enumerate(np.flatnonzero(genotype[:-1]).tolist())}
    parents = [parent.model for parent in net.parents]
    about = {"parents": [model.name for model in parents], "output": int(genotype[-1])}
    model = Model(
        deepcopy(_module(net, genotype, places, merged)),
        deepcopy(net.preprocess),
        name=name,
        classes=parents[0].classes,
        architecture="offspring",
        options={**about, "stitches": len(places), **net.task.about},
        tag=f"stitched from {parents[0].tag} and {parents[1].tag}",
    ).eval()
    if calibration:
        for buffer, value in recalibrate(net, net.plan([genotype]), calibration).buffers.items():
            model.net.get_buffer(buffer).copy_(value)
    return model


def _module(net: Supernetwork, genotype: np.ndarray, places: dict[int, int], merged: bool) -> fx.GraphModule:
    """The inner network of a genotype, whose modules are those of the supernetwork; `places` number its stitches."""
    root = nn.Module()
    root.a, root.b = net.nets
    root.renormalise = net.renormalise
    root.stitches = nn.ModuleDict({str(place): net.stitches[gene] for gene, place in places.items()})
    graph, outputs = _graph(net, genotype, places)
    if merged and len(outputs) > 1 and net.ensemble.plain:
        total = graph.call_function(operator.add, tuple(outputs))
        outputs = [graph.call_function(operator.truediv, (total, len(outputs)))]
    elif merged and len(outputs) > 1:
        root.ensemble = net.ensemble
        outputs = [graph.call_module("ensemble", tuple(outputs))]
    graph.output(outputs[0] if merged else tuple(outputs))
    return fx.GraphModule(root, graph)


def _graph(net: Supernetwork, genotype: np.ndarray, places: dict[int, int]) -> tuple[fx.Graph, list[fx.Node]]:
    """The steps of a genotype as a graph, and the nodes of its one or two logits; `places` number its stitches."""
    graph = fx.Graph()
    images = graph.placeholder("images")
    made: dict[int, Any] = {}

    def value(operand: Operand) -> fx.Node:
        return made[operand.source(genotype)]

    for vertex in net.graph.required(genotype)[0]:
        side, content, operands, _ = net.graph.vertices[vertex]
        if isinstance(content, int):
            made[vertex] = graph.call_module(f"stitches.{places[content]}", (value(operands[0]),))
        elif content.op == "placeholder" and content is not net.parents[side].input:
            made[vertex] = content.args[0]
        elif content.op == "placeholder":
            normalise = side == 1 and not net.renormalise.same
            made[vertex] = graph.call_module("renormalise", (images,)) if normalise else images
        else:
            values = dict(zip(content.all_input_nodes, map(value, operands), strict=True))
            made[vertex] = graph.node_copy(content, values.__getitem__)
            if content.op in ("call_module", "get_attr"):
                made[vertex].target = f"{'ab'[side]}.{content.target}"
    return graph, [value(operand) for operand in net.graph.outputs[genotype[-1]]]


def save(
    net: Supernetwork,
    genotype: np.ndarray,
    path: str | Path,
    *,
    name: str = "offspring",
    trained: Model | None = None,
    **details: Any,
) -> Path:
    """Write an offspring with a card: its parents (by digest), the switches that are on, and `details`.

    `trained`: the exported offspring, where its weights are no longer those of the supernetwork.
    """
    genotype = net.phenotype(net.check_genotype(genotype))
    on = []
    for gene in np.flatnonzero(genotype[:-1]).tolist():
        pair = net.pairs[gene // 2]
        on.append({"into": "ab"[gene % 2], "a": pair.a.name, "b": pair.b.name})
    parents = [{**parent.model.description(), "digest": digest(parent.model)} for parent in net.parents]
    card = {"name": name, "parents": parents, "on": on, "output": int(genotype[-1]), **net.task.about, **details}
    weights = (trained or export(net, genotype)).net.state_dict()
    if genotype[-1] == ENSEMBLE and not net.ensemble.plain:
        card["ensemble"] = net.ensemble.mean
        weights |= {"ensemble.share": net.ensemble.share.detach()}
    return write_artifact(path, KIND, card, weights)


def read_card(path: str | Path) -> dict[str, Any]:
    """The card of an offspring file; ConfigError if it is none."""
    return serialization.read_card(path, KIND, CARD)


def offspring_card(path: str | Path) -> dict[str, Any] | None:
    """The card of an offspring file; None if there is no such file or it is something else."""
    return read_card(path) if kind_of(path) == KIND else None


def load(path: str | Path) -> Model:
    """The offspring of a file, a frozen `Model` in eval mode; its parents' weights are not needed.

    ConfigError if the file is none, is damaged, or was made with a library whose networks look different.
    """
    _, version, card, tensors = read_artifact(path, KIND, CARD)
    if version > FORMAT or card.get("format", 1) != 1:  # version 0.1 kept its format in the card
        raise ConfigError(f"{path} is damaged, or was written by a newer version of Recombine; update it")
    try:
        net, genotype = _rebuild(card)
        model = export(net, genotype, card["name"])
        model.net.load_state_dict(tensors)
        model.options["card"] = card  # with it, it can be a parent of another one
    except (*DAMAGE, StopIteration) as error:
        raise ConfigError(
            f"{path} is damaged, or was made with other versions of the libraries its parents come from: {error}"
        ) from error
    return model.requires_grad_(False)


def _rebuild(card: dict[str, Any]) -> tuple[Supernetwork, np.ndarray]:
    """A supernetwork of random weights with the pairs that the offspring uses, and its genotype in it."""
    first, second = (Parent(_random_parent(description)) for description in card["parents"])
    a, b = ({node.name: node for node in parent.graph.nodes} for parent in (first, second))
    pairs = list(dict.fromkeys((gene["a"], gene["b"]) for gene in card["on"]))
    points = [StitchPoint(a[name_a], b[name_b]) for name_a, name_b in pairs]
    net = Supernetwork((first, second), points, card.get("ensemble", "logits"))
    if "ensemble" in card:
        net.ensemble.share.fill_(1)  # some number that is not plain: the file has the right one
    genotype = np.zeros_like(net.genotype)
    for gene in card["on"]:
        genotype[2 * pairs.index((gene["a"], gene["b"])) + "ab".index(gene["into"])] = 1
    genotype[-1] = card["output"]
    return net, genotype


def _random_parent(description: dict[str, Any]) -> Model:
    """A parent rebuilt from its description, with random weights; it may be an offspring itself."""
    if description["architecture"] == "offspring":
        card = description["options"]["card"]
        model = export(*_rebuild(card), card["name"])
        model.options["card"] = card
        return model
    check_description({key: value for key, value in description.items() if key != "digest"}, "one of its parents")
    with torch.random.fork_rng(devices=[]):
        net = zoo.create(
            description["architecture"], description["options"], classes=description["classes"], pretrained=False
        ).net
    keys = ("size", "mean", "std", "crop_pct", "interpolation")
    identity = {key: description[key] for key in ("name", "classes", "architecture", "options", "tag")}
    return Model(net, Preprocess(**{key: description[key] for key in keys}), **identity)
