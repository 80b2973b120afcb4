"""Clone files: what a target gains, in one safetensors file with a card for each clone.

A clone is stored by itself, or as a reference to its source, of which the file then holds the masks alone. A file of
several clones is a customised network: it names the target by its digest, which many such files can share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from recombine.core.errors import ConfigError
from recombine.models import Model, zoo
from recombine.models.freeze import digest
from recombine.models.graph import trace, traced
from recombine.models.serialization import DAMAGE, read_artifact, write_artifact
from recombine.models.weight_files import check_description
from recombine.pnc.clone.branch import Branch, find_linear_head
from recombine.pnc.clone.cards import check_cards
from recombine.pnc.clone.part import Clone
from recombine.pnc.clone.positions import Position, list_cuts

__all__ = [
    *("StoredClone", "build_clone", "file_size", "free_name", "load_clones", "pack_clone"),
    *("read_clones", "save_clone", "to_reference", "to_whole", "write_clones"),
]

KINDS = ("adapter", "head", "recalibrated", "residual", "granularity", "mask_input")
"""Of a branch, as its card has them; files of earlier versions have the first ones alone."""
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
"""What a reference holds of the source's layers if their BatchNorm statistics are the clone's own."""


class StoredClone(NamedTuple):
    """One clone as it stands in a file."""

    card: dict[str, Any]
    tensors: dict[str, Tensor]


def pack_clone(clone: Clone, *, name: str, target: nn.Module, source: Model, **about: Any) -> StoredClone:
    """A clone with its card: for which target (by digest), from which source, its classes, and `about`."""
    card: dict[str, Any] = {
        "name": name,
        "target": digest(target),
        "source": source.description(),
        "source_digest": digest(source),
    }
    card |= {"class_names": clone.class_names, "outputs": clone.outputs, "position": clone.position.number}
    card |= {"source_position": clone.position.source_number, **clone.kinds, "reference": False}
    card |= {"masks": len(clone.masks), "target_size": getattr(target, "size", None), "network": _type(target), **about}
    state = clone.state_dict() | {f"mask.{k}": mask for k, mask in enumerate(clone.masks)}
    return StoredClone(card, {key: value.detach().to("cpu", copy=True).contiguous() for key, value in state.items()})


def to_reference(clone: StoredClone) -> StoredClone:
    """Without the source's weights: who loads it needs the source, of which the masks are held."""
    statistics = STATISTICS if clone.card["recalibrated"] else ()
    tensors = {k: value for k, value in clone.tensors.items() if not k.startswith("module.") or k.endswith(statistics)}
    return StoredClone(clone.card | {"reference": True}, tensors)


def to_whole(clone: StoredClone, built: Clone) -> StoredClone:
    """With the source's weights, which `built` holds."""
    module = {f"module.{key}": value.detach().cpu().contiguous() for key, value in built.module.state_dict().items()}
    return StoredClone(clone.card | {"reference": False}, clone.tensors | module)


def file_size(clones: Sequence[StoredClone]) -> int:
    """Bytes that a file of these clones has."""
    with TemporaryDirectory() as folder:
        return _write(Path(folder) / "clones.safetensors", clones).stat().st_size


def _write(path: str | Path, clones: Sequence[StoredClone]) -> Path:
    tensors = {f"{clone.card['name']}/{key}": value for clone in clones for key, value in clone.tensors.items()}
    return write_artifact(path, "clone", {"cards": [clone.card for clone in clones]}, tensors)


def write_clones(path: str | Path, clones: Sequence[StoredClone]) -> Path:
    """Write clones of one target, in the order of their outputs; the file appears whole or not at all.

    ConfigError if two have a name or a class in common, or know what the target knows, or are of different targets.
    """
    names = [clone.card["name"] for clone in clones]
    known = [label for clone in clones[:1] for label in clone.card.get("target_class_names", ())]
    classes = known + [label for clone in clones for label in clone.card["class_names"]]
    for what, found in (("clone", names), ("class", classes)):
        if doubles := sorted({str(each) for each in found if found.count(each) > 1}):
            raise ConfigError(f"{path}: the {what} {', '.join(doubles)} comes twice; leave one of the clones out")
    if len({clone.card["target"] for clone in clones}) > 1:
        raise ConfigError(f"{path}: these are clones for different targets; one file holds those of one network")
    return _write(path, clones)


def save_clone(
    clone: Clone,
    path: str | Path,
    *,
    name: str,
    target: nn.Module,
    source: Model,
    reference: bool = False,
    **about: Any,
) -> Path:
    """Write one clone (`pack_clone`), whole or as a reference to its source."""
    whole = pack_clone(clone, name=name, target=target, source=source, **about)
    return write_clones(path, [to_reference(whole) if reference else whole])


def read_clones(path: str | Path) -> list[StoredClone]:
    """The clones of a file; ConfigError if it is none. Files of version 0.1 are read too."""
    artifact = read_artifact(path, "clone", {"cards": list})
    cards = check_cards(path, artifact.card)
    return [StoredClone(card, _part(artifact.tensors, f"{card['name']}/")) for card in cards]


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def load_clones(
    target: nn.Module, path: str | Path, sources: Sequence[Model] = (), size: int | None = None
) -> dict[str, Clone]:
    """The clones of a file for `target`, by name: a `Model`, or a timm or torchvision network.

    `sources` are needed for clones stored as references; each finds its own. `size`: pixels of a library network's
    images; None: as many as the clone was made at. ConfigError if `target` is not, bit for bit, the network the clones
    were made with, or a source is missing.
    """
    device, weights = next(target.parameters()).device, digest(target)
    return {
        clone.card["name"]: build_clone(path, clone, target, weights, sources, size).to(device)
        for clone in read_clones(path)
    }


def build_clone(
    path: str | Path,
    clone: StoredClone,
    target: nn.Module,
    weights: str,
    sources: Sequence[Model],
    size: int | None = None,
) -> Clone:
    """One clone of the file `path` for `target`, whose digest is `weights`; ConfigError as `load_clones` says."""
    if weights != clone.card["target"]:
        raise ConfigError(
            f"{path} was made with a target of weights {clone.card['target'][:12]}, but this {_type(target)} has "
            f"{weights[:12]}; load the target the clone was made with"
        )
    source = _source(path, clone.card, sources) if clone.card["reference"] else None
    try:
        return _build(clone, target, source, size)
    except DAMAGE as error:
        raise ConfigError(f"{path} is damaged or of another version: {error}") from error


def _source(path: str | Path, card: dict[str, Any], sources: Sequence[Model]) -> Model:
    found = [source for source in sources if digest(source) == card["source_digest"]]
    if not found:
        given = f"; none of {', '.join(source.name for source in sources)} is that one" if sources else ""
        raise ConfigError(
            f"{path} holds no weights of its source, {card['source']['name']} ({card['source_digest'][:12]}): "
            f"give that network too{given}"
        )
    return found[0]


def _build(clone: StoredClone, target: nn.Module, source: Model | None, size: int | None) -> Clone:
    card, tensors = clone
    origin = check_description(card["source"], "its source")
    if source is not None:
        net = source.net
    else:
        with torch.random.fork_rng(devices=[]):
            net = zoo.create(origin["architecture"], origin["options"], classes=origin["classes"], pretrained=False).net
    host, graph = traced(target, size or card["target_size"]), trace(net, origin["size"])
    number, entry = card["position"], card["source_position"]
    position = Position(number, list_cuts(host)[number], list_cuts(graph)[entry], entry)
    kinds = {key: card[key] for key in KINDS if key in card}
    branch = Branch(position, graph, card["outputs"], find_linear_head(host), **kinds)
    for k, mask in enumerate(branch.channel_masks):
        mask.fix(tensors[f"mask.{k}"])
    made = Clone(branch, card["class_names"], card)
    state = {key: value for key, value in tensors.items() if not key.startswith("mask.")}
    if source is not None:
        state = {f"module.{key}": value for key, value in made.module.state_dict().items()} | state
    made.load_state_dict(state)
    return made


def _type(model: nn.Module) -> str:
    return type(model.net if isinstance(model, Model) else model).__name__


def free_name(name: str, taken: Sequence[str]) -> str:
    """`name`, or with the first number from 2 that makes it another one than those taken."""
    return next(n for n in (name, *(f"{name}{k}" for k in range(2, len(taken) + 3))) if n not in taken)
