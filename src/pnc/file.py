"""Clone files: what a target gains, in one safetensors file with a card, by itself or as a reference to its source."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from src.core.errors import ConfigError
from src.core.files import replacing
from src.models import Model, zoo
from src.models.frozen import digest
from src.models.graph import trace, traced
from src.pnc.branch import Branch, linear_head, positions
from src.pnc.cloned import Clone, ClonedNetwork

__all__ = ["attach", "load", "read_card", "save"]

FORMAT = 1
CARD = {"name": str, "target": str, "source": dict, "source_digest": str, "class_names": list, "outputs": list}
CARD |= {"position": int, "reference": bool, "adapter": str, "head": str, "target_size": int | None}
"""What every card says, and how; the rest is there to be read."""
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
"""What a reference holds of the source's layers if their BatchNorm statistics are the clone's own."""
DAMAGE = (TypeError, ValueError, KeyError, IndexError, AttributeError, RuntimeError, OSError, SafetensorError)
"""What building a clone from a file raises if the file is not as `save` left it."""


def save(
    clone: Clone,
    path: str | Path,
    *,
    name: str,
    target: nn.Module,
    source: Model,
    reference: bool = False,
    **facts: Any,
) -> Path:
    """Write a clone with a card: for which target (by digest), from which source, its classes, and `facts`.

    `reference` leaves the source's weights out: whoever loads the file needs the source, of which it holds the masks.
    """
    card = {"name": name, "target": digest(target), "source": source.description(), "source_digest": digest(source)}
    card |= {"class_names": clone.class_names, "outputs": clone.outputs, "position": clone.position.number}
    card |= {**clone.kinds, "reference": reference, "format": FORMAT, "network": type(_net(target)).__name__}
    card |= {"masks": len(clone.masks), "target_size": getattr(target, "size", None), **facts}
    state = clone.state_dict() | {f"mask.{k}": mask for k, mask in enumerate(clone.masks)}
    own = STATISTICS if clone.kinds["recalibrated"] else ()
    kept = {k: v for k, v in state.items() if not (reference and k.startswith("module.")) or k.endswith(own)}
    path = Path(path)
    with replacing(path) as temporary:
        tensors = {k: v.detach().to("cpu", copy=True).contiguous() for k, v in kept.items()}
        save_file(tensors, temporary, {"clone": json.dumps(card)})
    return path


def read_card(path: str | Path) -> dict[str, Any]:
    """The card of a clone file; ConfigError if it is none."""
    return _read(path)[0]


def _read(path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get("clone")
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{path} cannot be read as a clone: {error}") from error
    if text is None:
        raise ConfigError(f"{path} is no clone file; main_pnc.py writes them")
    try:
        card = json.loads(text)
        wrong = [key for key, kind in CARD.items() if not isinstance(card.get(key), kind)]
    except (ValueError, AttributeError) as error:
        raise ConfigError(f"{path} is damaged: its card is no JSON object ({error})") from error
    if wrong or card.get("format") != FORMAT:
        raise ConfigError(
            f"{path} is damaged or of a newer version: its card does not say {', '.join(wrong) or 'format 1'}"
        )
    return card, tensors


def load(target: nn.Module, path: str | Path, source: Model | None = None, size: int | None = None) -> Clone:
    """The clone of a file for `target`: a `Model`, or a plain timm or torchvision network.

    `size`: pixels of a plain network's images; None: as many as the clone was made at.

    `source` is needed for files without the source's weights. ConfigError if `target` (or `source`) is not, bit for
    bit, the network the clone was made with.
    """
    card, tensors = _read(path)
    _check(path, "target", target, card["target"])
    if card["reference"]:
        if source is None:
            raise ConfigError(f"{path} holds no weights of its source, {card['source']['name']}: give that network too")
        _check(path, "source", source, card["source_digest"])
    try:
        clone = _built(card, tensors, target, source, size)
    except DAMAGE as error:
        raise ConfigError(f"{path} is damaged or of a newer version: {error}") from error
    return clone.to(next(target.parameters()).device)


def _built(
    card: dict[str, Any], tensors: dict[str, Tensor], target: nn.Module, source: Model | None, size: int | None
) -> Clone:
    about = card["source"]
    if card["reference"]:
        net = source.net
    else:
        with torch.random.fork_rng(devices=[]):
            net = zoo.create(about["architecture"], about["options"], classes=about["classes"], pretrained=False).net
    host, graph = traced(target, size or card["target_size"]), trace(net, about["size"])
    (position,) = (p for p in positions(host, graph) if p.number == card["position"])
    kinds = {"adapter": card["adapter"], "head": card["head"], "recalibrated": card.get("recalibrated", False)}
    branch = Branch(position, graph, card["outputs"], linear_head(host), **kinds)
    for k, gate in enumerate(branch.gates):
        gate.fix(tensors[f"mask.{k}"])
    clone = Clone(branch, card["class_names"])
    state = {key: value for key, value in tensors.items() if not key.startswith("mask.")}
    if card["reference"]:
        state = {f"module.{key}": value for key, value in clone.module.state_dict().items()} | state
    clone.load_state_dict(state)
    return clone


def _net(model: nn.Module) -> nn.Module:
    return model.net if isinstance(model, Model) else model


def _check(path: str | Path, role: str, model: nn.Module, wanted: str) -> None:
    if (own := digest(model)) != wanted:
        raise ConfigError(
            f"{path} was made with a {role} of weights {wanted[:12]}, but this {type(_net(model)).__name__} has "
            f"{own[:12]}; load the {role} the clone was made with"
        )


def attach(
    target: nn.Module, path: str | Path, name: str | None = None, *, source: Model | None = None
) -> ClonedNetwork:
    """Put the clone of a file on a network, or one more on a `ClonedNetwork`."""
    card = read_card(path)
    host = target if isinstance(target, ClonedNetwork) else ClonedNetwork(target, size=card["target_size"])
    return host.attach(load(host.target, path, source), name or card["name"])
