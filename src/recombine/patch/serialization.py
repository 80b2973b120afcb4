"""Patch files: the tensors of one patch with a card that says which network it is for and how it is built."""

from __future__ import annotations

import inspect
import json
import sys
from pathlib import Path
from typing import Any

from torch import nn

from recombine.core.errors import ConfigError
from recombine.models.freeze import digest
from recombine.models.graph import Traced, traced
from recombine.models.model import Model, unwrap
from recombine.models.serialization import DAMAGE, Artifact, read_artifact, write_artifact
from recombine.patch.adapters import NormAdaptation, ResidualAdapters
from recombine.patch.delta import Delta
from recombine.patch.lora import LoRA, ScaleShift
from recombine.patch.patched import HeadOnly, Patch, TaskNetwork

__all__ = [
    *("KINDS", "DENSE_HEADS", "Base", "class_of", "dtype_of", "kind_of", "load", "put_on"),
    *("read", "read_card", "save", "start_from"),
]

FORMAT = 1
DENSE_HEADS = ("segmentation", "detection")
"""What a card says under `head` where all that follows the encoder is in the file; see `dense.serialization`."""
KINDS: dict[str, type[Patch]] = {
    "delta": Delta,
    "head_only": HeadOnly,
    "residual_adapters": ResidualAdapters,
    "norm_adaptation": NormAdaptation,
    "lora": LoRA,
    "scale_shift": ScaleShift,
}
CARD = {"name": str, "base": str, "network": str, "kind": str, "options": dict, "classes": int, "class_names": list}
"""What every card says, with types; the rest is information for readers."""


def save(patched: TaskNetwork, path: str | Path, *, name: str, class_names: list[str], **info: Any) -> Path:
    """Write the patch alone, with a card: the digest of its base, how it is built, its classes, and `info`.

    `info` is whatever a reader should know: metrics, the dataset, the base's description. The file appears whole or
    not at all. Raises ConfigError for a wrong number of class names.
    """
    patch = patched.patch
    if len(class_names) != patch.classes:
        raise ConfigError(f"{len(class_names)} class names were given for a patch of {patch.classes} classes")
    card: dict[str, Any] = {
        "name": name,
        "base": digest(patched.base),
        "kind": kind_of(patch),
        "options": patch.options,
    }
    card |= {"classes": patch.classes, "class_names": class_names, "network": type(patched.base).__name__}
    card |= {"parameters_without_head": patch.parameters_without_head(), "dtype": dtype_of(patched.base), **info}
    return write_artifact(path, "patch", card, patch.state_dict(), version=FORMAT)


def read_card(path: str | Path) -> dict[str, Any]:
    """The card of a patch file; ConfigError if it is none, is damaged or of a later format."""
    return read(path).card


def read(path: str | Path) -> Artifact:
    """A patch file; ConfigError if it is none, is damaged or of a later format."""
    found = read_artifact(path, "patch", CARD)
    card, problem = found.card, ""
    if max(found.format, card.get("format", FORMAT)) > FORMAT:  # files of version 0.1 have it in their card
        problem = f"its card is not of format {FORMAT}"
    elif class_of(card["kind"]) is None:
        problem = f"its kind, {card['kind']}, is none of {', '.join(KINDS)}, nor a class of a module that was imported"
    elif len(card["class_names"]) != card["classes"]:
        problem = f"its card names {len(card['class_names'])} classes of {card['classes']}"
    if problem:
        raise ConfigError(f"{path} is damaged or of another version: {problem}")
    return found


def kind_of(patch: Patch) -> str:
    """What cards call the class of a patch."""
    dotted = f"{type(patch).__module__}.{type(patch).__qualname__}"
    return next((kind for kind, cls in KINDS.items() if type(patch) is cls), dotted)


def class_of(kind: str) -> Any:
    """The class of a kind of patch; None if there is none. Other people's modules are not imported for a file."""
    module, _, name = kind.rpartition(".")
    cls = KINDS.get(kind) or getattr(sys.modules.get(module), name, None)
    return cls if inspect.isclass(cls) and issubclass(cls, Patch) else None


class Base:
    """A network with what putting a patch on it needs: its digest and its graphs, each found once.

    Both are found again if a tensor of the network was replaced or changed in place.
    """

    def __init__(self, net: nn.Module) -> None:
        self.net = net
        self._graphs: dict[int | None, Traced] = {}
        self._seen: tuple | None = None
        self._digest = ""

    @property
    def digest(self) -> str:
        """See `models.freeze.digest`."""
        seen = tuple((value.data_ptr(), value._version, value.dtype) for value in self.net.state_dict().values())
        if seen != self._seen:
            self._graphs.clear()
            self._seen, self._digest = seen, digest(self.net)
        return self._digest

    def traced(self, size: int | None) -> Traced:
        """The graph at a size in pixels; None: the network's own."""
        if size not in self._graphs:
            self._graphs[size] = traced(self.net, size)
        return self._graphs[size]


def load(model: nn.Module, path: str | Path, size: int | None = None) -> TaskNetwork:
    """The network with the patch of a file, in eval mode; the network is frozen (see `TaskNetwork`), and not changed.

    `model`: a `Model`, or a timm or torchvision network (at `size` pixels; None: its own default). Raises
    ConfigError if it is not, bit for bit, the network the patch was made for.
    """
    return put_on(Base(model), read(path), path, size)


def put_on(base: Base, found: Artifact, path: str | Path, size: int | None = None) -> TaskNetwork:
    """`load` of a file that was read before; `path` is for messages."""
    card = found.card
    if card.get("head") in DENSE_HEADS:
        raise ConfigError(f"{path} is for a network for {card['head']}: recombine.attach(network, path)")
    _check_base(base, path, card)
    graph = base.traced(size or card.get("size"))
    try:
        patch = class_of(card["kind"])(graph, card["classes"], **card["options"])
        patch.load_state_dict(found.tensors)
    except DAMAGE as error:
        raise ConfigError(f"{path} is damaged or of another version: {error}") from error
    device = next(base.net.parameters()).device
    return TaskNetwork(base.net, patch).to(device).eval()


def start_from(patched: TaskNetwork, path: str | Path, class_names: list[str]) -> None:
    """Give a new patch the weights of a file, which has to hold one like it: ConfigError says where they differ."""
    found = read(path)
    _check_base(Base(patched.base), path, found.card)
    here = {"kind": kind_of(patched.patch), "options": patched.patch.options, "class_names": class_names}
    there = json.loads(json.dumps(here))  # as a card holds it
    if differ := [key for key, value in there.items() if found.card[key] != value]:
        told = "; ".join(f"its {key.replace('_', ' ')} is {found.card[key]}, and here {there[key]}" for key in differ)
        raise ConfigError(f"patch_weights={path} is of another patch: {told}; give its method and its task")
    patched.patch.load_state_dict(found.tensors)


def _check_base(base: Base, path: str | Path, card: dict[str, Any]) -> None:
    """ConfigError if the network is not, bit for bit, the one a patch was made for."""
    model, given = unwrap(base.net), base.digest
    if given == card["base"]:
        return
    dtype, made_for = dtype_of(model), card.get("dtype", "float32")
    mend = "load the base the patch was trained on"
    if dtype != made_for:
        mend = f"they are {dtype}: put the patch on the network in {made_for}, and convert both then"
    raise ConfigError(
        f"{path} was made for a {card['network']} with weights {card['base'][:12]}, but this "
        f"{type(model.net if isinstance(model, Model) else model).__name__} has weights {given[:12]}; {mend}"
    )


def dtype_of(model: nn.Module) -> str:
    """Type of a network's parameters, such as float32."""
    return str(next(model.parameters()).dtype).removeprefix("torch.")
