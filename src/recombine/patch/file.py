"""Patch files: a small safetensors file with a card, and the network a patch is put on."""

from __future__ import annotations

import json
import re
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from recombine.core.errors import ConfigError
from recombine.core.files import replacing
from recombine.models.freeze import ModuleState, digest, freeze, thaw
from recombine.models.graph import traced
from recombine.models.model import Model
from recombine.patch.adapters import NormAdaptation, ResidualAdapters
from recombine.patch.delta import Delta
from recombine.patch.patched import HeadOnly, Patch, Patched

__all__ = ["RESERVED", "System", "apply", "digest", "load", "name_problem", "read_card", "save"]

FORMAT = 1
KINDS: dict[str, type[Patch]] = {
    "delta": Delta,
    "head_only": HeadOnly,
    "residual_adapters": ResidualAdapters,
    "norm_adaptation": NormAdaptation,
}
CARD = {"name": str, "base": str, "network": str, "kind": str, "options": dict, "classes": int, "class_names": list}
"""What every card says, and how; the rest is there to be read."""
DAMAGE = (
    ConfigError,
    TypeError,
    ValueError,
    KeyError,
    IndexError,
    AttributeError,
    RuntimeError,
    OSError,
    SafetensorError,
)
"""What building a patch from a file raises if the file is not as `save` left it."""
RESERVED = ("base", "auto", "patched", "base_before", "base_after")
"""Names that mean something else where patches are asked for, or where their accuracies stand in a row."""


def name_problem(name: str) -> str | None:
    """Why a patch cannot be called `name`, if so."""
    if name in RESERVED:
        return f"{name!r} means something else"
    if not re.fullmatch(r"\w[\w+=-]*", name, re.ASCII) or hasattr(nn.ModuleDict(), name):
        return f"{name!r} is no possible name: letters, digits, _ and - are, but no method of a module"
    return None


def save(patched: Patched, path: str | Path, *, name: str, class_names: list[str], **facts: Any) -> Path:
    """Write the patch alone, with a card: which base (by digest), how it is built, its classes, and `facts`.

    `facts` are whatever a reader should know: metrics, the dataset, the base's description. Whole or not at all.
    """
    path, patch = Path(path), patched.patch
    if len(class_names) != patch.classes:
        raise ConfigError(f"{len(class_names)} class names were given for a patch of {patch.classes} classes")
    kind = next(kind for kind, cls in KINDS.items() if type(patch) is cls)
    card = {"name": name, "base": digest(patched.base), "kind": kind, "options": patch.options, "format": FORMAT}
    card |= {"classes": patch.classes, "class_names": class_names, "network": type(patched.base).__name__}
    card |= {"parameters_without_head": patch.parameters_without_head(), "dtype": _dtype(patched.base), **facts}
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
    if text is None:
        raise ConfigError(f"{path} is no patch file; main_patch.py writes them")
    if problem := _card_problem(text):
        raise ConfigError(f"{path} is damaged or of a newer version: {problem}")
    return json.loads(text)


def _card_problem(text: str) -> str | None:
    try:
        card = json.loads(text)
    except ValueError as error:
        return f"its card is no JSON ({error})"
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        return f"its card is not of format {FORMAT}"
    wrong = [key for key, kind in CARD.items() if not isinstance(card.get(key), kind)]
    if wrong:
        return f"its card does not say {', '.join(wrong)}"
    if card["kind"] not in KINDS:
        return f"its kind, {card['kind']}, is none of {', '.join(KINDS)}"
    if len(card["class_names"]) != card["classes"]:
        return f"its card names {len(card['class_names'])} classes of {card['classes']}"
    return None


def load(model: nn.Module, path: str | Path, size: int | None = None) -> Patched:
    """The network with the patch of a file, in eval mode; the network is frozen (see `Patched`), and not changed.

    `model`: a `Model`, or a plain timm or torchvision network (at `size` pixels; None: its own default). Raises
    ConfigError if it is not, bit for bit, the network the patch was made for.
    """
    card = read_card(path)
    _check_base(model, path, card)
    graph = traced(model, size or card.get("size"))
    try:
        patch = KINDS[card["kind"]](graph, card["classes"], **card["options"])
        with safe_open(path, "pt") as file:
            patch.load_state_dict({key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118 (not a mapping)
    except DAMAGE as error:
        raise ConfigError(f"{path} is damaged or of a newer version: {error}") from error
    device = next(model.parameters()).device
    return Patched(model, patch).to(device).eval()


def _check_base(model: nn.Module, path: str | Path, card: dict[str, Any]) -> None:
    """ConfigError if the network is not, bit for bit, the one a patch was made for."""
    own = digest(model)
    if own == card["base"]:
        return
    dtype, made_for = _dtype(model), card.get("dtype", "float32")
    mend = "load the base the patch was trained on"
    if dtype != made_for:
        mend = f"they are {dtype}: put the patch on the network in {made_for}, and convert both then"
    raise ConfigError(
        f"{path} was made for a {card['network']} with weights {card['base'][:12]}, but this "
        f"{type(model.net if isinstance(model, Model) else model).__name__} has weights {own[:12]}; {mend}"
    )


def _dtype(model: nn.Module) -> str:
    """Of a network's parameters, such as float32."""
    return str(next(model.parameters()).dtype).removeprefix("torch.")


class System(nn.Module):
    """A network with any number of patches, each used when its task is asked for.

    While a patch is attached the network is frozen, so that training around it cannot change it.
    """

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.patches = nn.ModuleDict()
        self._cards: dict[str, dict[str, Any]] = {}
        self._before: ModuleState | None = None

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
        problem = f"a patch {name!r} is attached already" if name in self._cards else name_problem(name)
        if problem:
            raise ConfigError(f"{path}: {problem}; give the patch another name: apply(model, path, name)")
        before = freeze(self.base)
        with ExitStack() as undo:
            undo.callback(thaw, self.base, before)
            self.patches[name] = load(self.base, path)
            undo.pop_all()
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
