"""Patch files: a small safetensors file with a card, and the network a patch is put on."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from src.core.errors import ConfigError
from src.core.files import replacing
from src.models.model import Model
from src.patch.adapters import NormAdaptation, ResidualAdapters
from src.patch.delta import Delta
from src.patch.patched import HeadOnly, Patch, Patched, Standing, freeze, thaw, traced

__all__ = ["System", "apply", "digest", "load", "read_card", "save"]

FORMAT = 1
KINDS: dict[str, type[Patch]] = {
    "delta": Delta,
    "head_only": HeadOnly,
    "residual_adapters": ResidualAdapters,
    "norm_adaptation": NormAdaptation,
}


def digest(net: nn.Module) -> str:
    """SHA-256 of a network's state: names, types, shapes and every bit."""
    net = net.net if isinstance(net, Model) else net
    value = hashlib.sha256()
    for key, tensor in sorted(net.state_dict().items()):
        value.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
        value.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return value.hexdigest()


def save(patched: Patched, path: str | Path, *, name: str, class_names: list[str], **facts: Any) -> Path:
    """Write the patch alone, with a card: which base (by digest), how it is built, its classes, and `facts`.

    `facts` are whatever a reader should know: metrics, the dataset, the base's description. Whole or not at all.
    """
    path, patch = Path(path), patched.patch
    kind = next(kind for kind, cls in KINDS.items() if type(patch) is cls)
    card = {"name": name, "base": digest(patched.base), "kind": kind, "options": patch.options, "format": FORMAT}
    card |= {"classes": patch.classes, "class_names": class_names, "network": type(patched.base).__name__}
    card |= {"parameters_without_head": patch.parameters_without_head(), **facts}
    state = {key: value.detach().to("cpu", copy=True).contiguous() for key, value in patch.state_dict().items()}
    with replacing(path) as temporary:
        save_file(state, temporary, {"patch": json.dumps(card)})
    return path


def read_card(path: str | Path) -> dict[str, Any]:
    """The card of a patch file; ConfigError if it is none."""
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get("patch")
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{path} cannot be read as a patch: {error}") from error
    card = json.loads(text) if text else {}
    if card.get("format") != FORMAT:
        raise ConfigError(f"{path} is no patch file of format {FORMAT}; main_patch.py writes them")
    return card


def load(model: nn.Module, path: str | Path, size: int | None = None) -> Patched:
    """The network with the patch of a file, in eval mode; the network is frozen (see `Patched`), and not changed.

    `model`: a `Model`, or a plain timm or torchvision network (at `size` pixels; None: its own default). Raises
    ConfigError if it is not, bit for bit, the network the patch was made for.
    """
    card = read_card(path)
    own = digest(model)
    if own != card["base"]:
        raise ConfigError(
            f"{path} was made for a {card['network']} with weights {card['base'][:12]}, but this "
            f"{type(model.net if isinstance(model, Model) else model).__name__} has weights {own[:12]}; "
            f"load the base the patch was trained on"
        )
    patch = KINDS[card["kind"]](traced(model, size or card.get("size")), card["classes"], **card["options"])
    with safe_open(path, "pt") as file:
        patch.load_state_dict({key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118 (not a mapping)
    device = next(model.parameters()).device
    return Patched(model, patch).to(device).eval()


class System(nn.Module):
    """A network with any number of patches, each used when its task is asked for.

    While a patch is attached the network is frozen, so that training around it cannot change it.
    """

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.patches = nn.ModuleDict()
        self._cards: dict[str, dict[str, Any]] = {}
        self._before: Standing | None = None

    def train(self, mode: bool = True) -> System:
        """Train the patches; the network stays in eval mode while there is one."""
        super().train(mode)
        if self._cards:
            self.base.eval()
        return self

    def forward(self, images: Tensor, task: str | None = None) -> Tensor:
        """Logits of `task`, by the name of its patch; None is the base, through its own untouched code."""
        if task is None:
            return self.base(images)
        if task not in self.patches:
            known = ", ".join(self.patches) or "none"
            raise ConfigError(f"there is no patch for task {task!r}; attached are: {known} (None is the base)")
        return self.patches[task](images)

    def attach(self, path: str | Path, name: str | None = None) -> System:
        """Add the patch of a file under `name` (its own name by default)."""
        card = read_card(path)
        name = name or card["name"]
        before = freeze(self.base)
        try:
            self.patches[name] = load(self.base, path)
        except ConfigError:
            thaw(self.base, before)
            raise
        if not self._cards:
            self._before = before
        self._cards[name] = card
        return self

    def list(self) -> dict[str, dict[str, Any]]:
        """The cards of all patches by name."""
        return dict(self._cards)

    def detach(self, name: str | None = None) -> nn.Module:
        """Remove one patch, or all; returns the base, which is bit for bit what it was."""
        for each in (name,) if name else tuple(self._cards):
            if each not in self._cards:
                raise ConfigError(f"there is no patch {each!r} to detach; attached are: {', '.join(self._cards)}")
            del self.patches[each], self._cards[each]
        if not self._cards and self._before is not None:
            thaw(self.base, self._before)
            self._before = None
        return self.base


def apply(model: nn.Module, path: str | Path, name: str | None = None) -> System:
    """Put the patch of a file on a network, or one more on a `System`; see `load` for what fits."""
    return (model if isinstance(model, System) else System(model)).attach(path, name)
