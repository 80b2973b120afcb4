"""Clone files: what a target gains, in one safetensors file with a card for each clone.

A clone is stored by itself, or as a reference to its source, of which the file then holds the masks alone. A file of
several clones is a customised network: it names the target by its digest, which many such files can share.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from safetensors.torch import save_file
from torch import Tensor, nn

from recombine.core.errors import ConfigError
from recombine.core.files import replacing
from recombine.models import Model, zoo
from recombine.models.freeze import digest
from recombine.models.graph import trace, traced
from recombine.pnc.clone.branch import Branch, linear_head
from recombine.pnc.clone.network import Clone, ClonedNetwork
from recombine.pnc.clone.positions import Position, places

__all__ = ["Stored", "as_reference", "as_whole", "attach", "build", "cards", "free_name", "load", "read", "save"]
__all__ += ["size", "stored", "write"]

FORMAT = 2
CARD = {"name": str, "target": str, "source": dict, "source_digest": str, "class_names": list, "outputs": list}
CARD |= {"position": int, "source_position": int, "reference": bool, "adapter": str, "head": str}
CARD |= {"recalibrated": bool, "target_size": int | None}
"""What every card says, and how; the rest is there to be read."""
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
"""What a reference holds of the source's layers if their BatchNorm statistics are the clone's own."""
DAMAGE = (TypeError, ValueError, KeyError, IndexError, AttributeError, RuntimeError, OSError, SafetensorError)
"""What building a clone from a file raises if the file is not as `write` left it."""


class Stored(NamedTuple):
    """One clone as it stands in a file."""

    card: dict[str, Any]
    tensors: dict[str, Tensor]


def stored(clone: Clone, *, name: str, target: nn.Module, source: Model, **facts: Any) -> Stored:
    """A clone with its card: for which target (by digest), from which source, its classes, and `facts`."""
    card = {"name": name, "target": digest(target), "source": source.description(), "source_digest": digest(source)}
    card |= {"class_names": clone.class_names, "outputs": clone.outputs, "position": clone.position.number}
    card |= {"source_position": clone.position.source_number, **clone.kinds, "reference": False}
    card |= {"masks": len(clone.masks), "target_size": getattr(target, "size", None), "network": _type(target), **facts}
    state = clone.state_dict() | {f"mask.{k}": mask for k, mask in enumerate(clone.masks)}
    return Stored(card, {key: value.detach().to("cpu", copy=True).contiguous() for key, value in state.items()})


def as_reference(clone: Stored) -> Stored:
    """Without the source's weights: who loads it needs the source, of which the masks are held."""
    own = STATISTICS if clone.card["recalibrated"] else ()
    tensors = {k: value for k, value in clone.tensors.items() if not k.startswith("module.") or k.endswith(own)}
    return Stored(clone.card | {"reference": True}, tensors)


def as_whole(clone: Stored, built: Clone) -> Stored:
    """With the source's weights, which `built` holds."""
    module = {f"module.{key}": value.detach().cpu().contiguous() for key, value in built.module.state_dict().items()}
    return Stored(clone.card | {"reference": False}, clone.tensors | module)


def _packed(clones: Sequence[Stored]) -> tuple[dict[str, Tensor], dict[str, str]]:
    tensors = {f"{clone.card['name']}/{key}": value for clone in clones for key, value in clone.tensors.items()}
    return tensors, {"clones": json.dumps({"format": FORMAT, "cards": [clone.card for clone in clones]})}


def size(clones: Sequence[Stored]) -> int:
    """Bytes that a file of these clones has."""
    return len(to_bytes(*_packed(clones)))


def write(path: str | Path, clones: Sequence[Stored]) -> Path:
    """Write clones of one target, in the order of their outputs; the file appears whole or not at all.

    ConfigError if two have a name or a class in common, or know what the target knows, or are of different targets.
    """
    names = [clone.card["name"] for clone in clones]
    own = [label for clone in clones[:1] for label in clone.card.get("target_class_names", ())]
    classes = own + [label for clone in clones for label in clone.card["class_names"]]
    for what, found in (("clone", names), ("class", classes)):
        if doubles := sorted({str(each) for each in found if found.count(each) > 1}):
            raise ConfigError(f"{path}: the {what} {', '.join(doubles)} comes twice; leave one of the clones out")
    if len({clone.card["target"] for clone in clones}) > 1:
        raise ConfigError(f"{path}: these are clones for different targets; one file holds those of one network")
    path = Path(path)
    with replacing(path) as temporary:
        tensors, metadata = _packed(clones)
        save_file(tensors, temporary, metadata)
    return path


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
    """Write one clone (`stored`), whole or as a reference to its source."""
    whole = stored(clone, name=name, target=target, source=source, **facts)
    return write(path, [as_reference(whole) if reference else whole])


def cards(path: str | Path) -> dict[str, dict[str, Any]]:
    """The cards of a file's clones by name, in the order of their outputs; ConfigError if it is no clone file."""
    return {clone.card["name"]: clone.card for clone in read(path)}


def read(path: str | Path) -> list[Stored]:
    """The clones of a file; ConfigError if it is none."""
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get("clones")
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{path} cannot be read as a clone: {error}") from error
    if text is None:
        raise ConfigError(f"{path} is no clone file; main_pnc.py writes them")
    try:
        content = json.loads(text)
        version, found = content["format"], content["cards"]
        wrong = [key for card in found for key, kind in CARD.items() if not isinstance(card[key], kind)]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is damaged: it does not say what its clones are ({error})") from error
    if version != FORMAT or wrong:
        raise ConfigError(f"{path} is damaged or of another version: {', '.join(wrong) or f'format {version}'}")
    return [Stored(card, _part(tensors, f"{card['name']}/")) for card in found]


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def load(
    target: nn.Module, path: str | Path, sources: Sequence[Model] = (), size: int | None = None
) -> dict[str, Clone]:
    """The clones of a file for `target`, by name: a `Model`, or a plain timm or torchvision network.

    `sources` are needed for clones stored as references; each finds its own. `size`: pixels of a plain network's
    images; None: as many as the clone was made at. ConfigError if `target` is not, bit for bit, the network the clones
    were made with, or a source is missing.
    """
    device, own = next(target.parameters()).device, digest(target)
    return {clone.card["name"]: build(path, clone, target, own, sources, size).to(device) for clone in read(path)}


def build(
    path: str | Path, clone: Stored, target: nn.Module, own: str, sources: Sequence[Model], size: int | None = None
) -> Clone:
    """One clone of the file `path` for `target`, whose digest is `own`; ConfigError as `load` says."""
    if own != clone.card["target"]:
        raise ConfigError(
            f"{path} was made with a target of weights {clone.card['target'][:12]}, but this {_type(target)} has "
            f"{own[:12]}; load the target the clone was made with"
        )
    source = _source(path, clone.card, sources) if clone.card["reference"] else None
    try:
        return _built(clone, target, source, size)
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


def _built(clone: Stored, target: nn.Module, source: Model | None, size: int | None) -> Clone:
    card, tensors = clone
    about = card["source"]
    if source is not None:
        net = source.net
    else:
        with torch.random.fork_rng(devices=[]):
            net = zoo.create(about["architecture"], about["options"], classes=about["classes"], pretrained=False).net
    host, graph = traced(target, size or card["target_size"]), trace(net, about["size"])
    number, entry = card["position"], card["source_position"]
    position = Position(number, places(host)[number], places(graph)[entry], entry)
    kinds = {key: card[key] for key in ("adapter", "head", "recalibrated")}
    branch = Branch(position, graph, card["outputs"], linear_head(host), **kinds)
    for k, gate in enumerate(branch.gates):
        gate.fix(tensors[f"mask.{k}"])
    made = Clone(branch, card["class_names"])
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


def attach(
    target: nn.Module, path: str | Path, name: str | None = None, *, sources: Sequence[Model] = ()
) -> ClonedNetwork:
    """Put the clones of a file on a network, or more of them on a `ClonedNetwork`.

    They keep their names, with a number where one is taken; `name` is for the clone of a file that holds one.
    """
    about = cards(path)
    if name is not None and len(about) > 1:
        raise ConfigError(f"{path} holds {len(about)} clones ({', '.join(about)}): one name cannot be given to all")
    first = next(iter(about.values()), {})
    host = target
    if not isinstance(host, ClonedNetwork):
        host = ClonedNetwork(target, first.get("target_class_names"), size=first.get("target_size"))
    for own, clone in load(host.target, path, sources).items():
        host.attach(clone, name or free_name(own, list(host.clones)))
    return host
