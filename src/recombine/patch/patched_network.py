"""A network with any number of patches, one for each task."""

from __future__ import annotations

import builtins
import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from recombine.core.errors import ConfigError, RecombineError
from recombine.models.freeze import ModuleState, digest, freeze_shared, unfreeze_shared
from recombine.models.model import Model, unwrap
from recombine.patch.dense.serialization import put_on_dense
from recombine.patch.merging import merge
from recombine.patch.names import name_problem
from recombine.patch.patched import TaskNetwork
from recombine.patch.serialization import DENSE_HEADS, Base, dtype_of, put_on, read

__all__ = ["PatchedNetwork", "attach"]


class PatchedNetwork(nn.Module):
    """A network with patches by name: `network(x)` is the base, `network(x, "cars")` the task of that patch.

    While a patch is attached the base is frozen, so that training around it cannot change it.
    """

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        self._known = Base(base)
        self._patches = nn.ModuleDict()  # keys begin with @, as a key that is a method's name, such as keys, is refused
        self._cards: dict[str, dict[str, Any]] = {}
        self._before: ModuleState | None = None
        self._attached_to: tuple[str, str] | None = None

    def train(self, mode: bool = True) -> PatchedNetwork:
        """Train the patches; the base stays in eval mode while there is one."""
        super().train(mode)
        if self._cards:
            self.base.eval()
        return self

    def forward(self, images: Tensor, task: str | Mapping[str, float] | Sequence[str | None] | None = None) -> Any:
        """Logits of `task`, by the name of its patch; None is the base, through its unchanged code.

        A list gives each image its own task, and a list of logits [classes], as tasks differ in their classes. Weights
        by name give the weighted mean of the logits of patches with the same classes.
        """
        if task is None:
            return self.base(images)
        if isinstance(task, Mapping):
            return self._weigh(images, task)
        return self.task(task)(images) if isinstance(task, str) else self._each(images, task)

    def _weigh(self, images: Tensor, weights: Mapping[str, float]) -> Tensor:
        """sum_i w_i z_i / sum_i w_i over the named patches."""
        classes = {name: self._card(name)["class_names"] for name in weights}
        if any(names != next(iter(classes.values())) for names in classes.values()):
            counts = ", ".join(f"{name} {len(names)}" for name, names in classes.items())
            raise ConfigError(f"patches of different classes cannot be averaged ({counts}); take those of one task")
        total = sum(weights.values())
        if not 0 < total < math.inf or min(weights.values()) < 0:
            raise ConfigError(
                f"weights of patches are needed, at least one above 0 and none below, not {dict(weights)}"
            )
        found = self._logits([name for name, weight in weights.items() if weight], images)
        return torch.stack([weights[name] * logits for name, logits in found.items()]).sum(0) / total

    def _each(self, images: Tensor, tasks: Sequence[str | None]) -> builtins.list[Tensor]:
        if len(tasks) != len(images):
            raise ConfigError(f"{len(tasks)} tasks were given for {len(images)} images; one for each is needed")
        logits: dict[int, Tensor] = {}
        for task in dict.fromkeys(tasks):
            places = [place for place, each in enumerate(tasks) if each == task]
            logits |= dict(zip(places, self(images[places], task), strict=True))
        return [logits[place] for place in range(len(images))]

    def predict_all(self, images: Tensor) -> dict[str, Tensor]:
        """Logits of every task by name; what patches share of the base before their first place is computed once."""
        return self._logits(self._cards, images)

    def _logits(self, names: Iterable[str], images: Tensor) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        shared: dict[tuple, Any] = {}
        for name in names:
            network = self.task(name)
            if isinstance(network, TaskNetwork):
                place = (network.patch.traced, network.border)
                shared[place] = shared[place] if place in shared else network.start(images)
                found[name] = network.finish(shared[place])
            else:  # with heads of its own
                found[name] = network(images)
        return found

    def merge(self, name: str) -> nn.Module:
        """A network of its own with this patch in its weights; the base stays. See `patch.merge` for what can be.

        Of a `Model` it is one, of the patch's classes.
        """
        patched, base = self.task(name), unwrap(self.base)
        if not isinstance(patched, TaskNetwork):
            raise ConfigError(f"{name} has heads of its own beside the patch, and cannot be merged: recombine export")
        net = merge(patched)
        if not isinstance(base, Model):
            return net
        card = self._cards[name]
        return Model(
            net,
            copy.deepcopy(base.preprocess),
            name=f"{base.name}-{name}",
            classes=card["classes"],
            architecture=base.architecture,
            options=base.options,
            tag=name,
            class_names=card["class_names"],
        ).eval()

    def task(self, name: str) -> Any:
        """The network of one task, by the name of its patch; ConfigError if there is none."""
        self._card(name)
        return self._patches[f"@{name}"]

    def _card(self, name: str) -> dict[str, Any]:
        if name not in self._cards:
            known = ", ".join(self._cards) or "none"
            raise ConfigError(f"there is no patch for task {name!r}; attached are: {known} (None is the base)")
        return self._cards[name]

    def attach(self, path: str | Path, name: str | None = None) -> PatchedNetwork:
        """Add the patch of a file under `name` (by default that of its card).

        Raises ConfigError for a name that is taken or impossible, and for a patch of another network.
        """
        found = read(path)
        name = name or found.card["name"]
        problem = f"a patch {name!r} is attached already" if name in self._cards else name_problem(name)
        if problem:
            raise ConfigError(f"{path}: {problem}; give the patch another name: attach(network, path, name)")
        before = freeze_shared(self.base, self)
        with ExitStack() as undo:
            if not self._cards:
                undo.callback(unfreeze_shared, self.base, self, before)
            dense = found.card.get("head") in DENSE_HEADS
            patched = put_on_dense(self.base, found, path) if dense else put_on(self._known, found, path)
            self._patches[f"@{name}"] = patched
            undo.pop_all()
        if not self._cards:
            self._before, self._attached_to = before, (self._known.digest, dtype_of(self.base))
        self._cards[name] = found.card
        return self

    def list(self) -> dict[str, dict[str, Any]]:
        """The cards of all patches by name."""
        return dict(self._cards)

    def detach(self, name: str) -> PatchedNetwork:
        """Take off one patch; with the last one the base gets its modes and gradient flags back."""
        if name not in self._cards:
            known = ", ".join(self._cards) or "none"
            raise ConfigError(f"there is no patch {name!r} to detach; attached are: {known}")
        del self._patches[f"@{name}"], self._cards[name]
        if not self._cards and self._before is not None:
            unfreeze_shared(self.base, self, self._before)
            self._before = None
        return self

    def restore(self) -> nn.Module:
        """Take off everything; returns the base, bit for bit what it was, with its modes and gradient flags.

        Raises RecombineError if something else changed its weights meanwhile (not compared where the network was
        converted to another precision).
        """
        for name in tuple(self._cards):
            self.detach(name)
        if self._attached_to is not None:
            weights, dtype = self._attached_to
            if dtype == dtype_of(self.base) and digest(self.base) != weights:
                raise RecombineError(
                    f"the weights of {type(self.base).__name__} are not those that its patches were attached to: "
                    f"something else changed them; load the network again"
                )
        return self.base


def attach(network: nn.Module, path: str | Path, name: str | None = None) -> PatchedNetwork:
    """The network with the patch of a file, or one more on a `PatchedNetwork`; `name`: another one than the card's.

    `network`: a `Model`, or a timm or torchvision network. Raises ConfigError if it is not, bit for bit, the
    network the patch was made for.
    """
    return (network if isinstance(network, PatchedNetwork) else PatchedNetwork(network)).attach(path, name)
