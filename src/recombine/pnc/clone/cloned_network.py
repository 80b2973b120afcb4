"""A network with clones of parts of others: none of its weights changed, every clone removable."""

from __future__ import annotations

import re
from collections.abc import MutableMapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from recombine.core.errors import ConfigError
from recombine.models.freeze import ModuleState, digest, freeze_shared, unfreeze_shared
from recombine.models.graph import segment, traced
from recombine.models.model import Model
from recombine.pnc.clone.branch import FullHead, features_node, find_linear_head, join_logits, logits_node
from recombine.pnc.clone.cards import read_cards
from recombine.pnc.clone.part import Clone
from recombine.pnc.clone.positions import list_cuts
from recombine.pnc.clone.serialization import free_name, load_clones

__all__ = ["ClonedNetwork", "attach"]

Names = list[str]


class ClonedNetwork(nn.Module):
    """A target with any number of clones: its own logits, then those of each clone in the order they were attached.

    The target runs once for all clones. While one is attached it is frozen and in eval mode.
    """

    def __init__(self, target: nn.Module, class_names: Names | None = None, size: int | None = None) -> None:
        """`target`: a `Model` (uint8 images) or a timm or torchvision network (normalised floats).

        `class_names` of the target's outputs; `size`: pixels of a library network's images.
        """
        super().__init__()
        self.target = target
        self.preprocess = target.preprocess if isinstance(target, Model) else nn.Identity()
        self.traced = traced(target, size)
        self.clones: MutableMapping[str, Clone] = nn.ModuleDict()  # type: ignore[assignment]
        self.target_class_names = class_names
        self._digest = digest(target)
        self._before: ModuleState | None = None

    @property
    def class_names(self) -> Names:
        """Of all outputs, in their order."""
        count = find_linear_head(self.traced).out_features
        target = self.target_class_names or [f"class {i}" for i in range(count)]
        return [*target, *(name for clone in self.clones.values() for name in clone.class_names)]

    def train(self, mode: bool = True) -> ClonedNetwork:
        """The target and its clones stay in eval mode while there is a clone."""
        return super().train(mode and not len(self.clones))

    def attach(
        self, clone: Clone | str | Path, name: str | None = None, *, sources: Sequence[Model] = ()
    ) -> ClonedNetwork:
        """Add a clone, or those of a file, and return this network; their outputs come last.

        Without `name` a clone keeps the one it has, with a number where that is taken; `name` is for a single clone.
        `sources` are needed for files that hold no weights of the source. ConfigError if a name or a class is taken.
        """
        if not isinstance(clone, Clone):
            clones = load_clones(self.target, clone, sources)
            if name is not None and len(clones) > 1:
                held = f"{len(clones)} clones ({', '.join(clones)})"
                raise ConfigError(f"{clone} holds {held}: one name cannot be given to all")
            for each in clones.values():
                self.attach(each, name)
            return self
        name = name or free_name(clone.card.get("name", "clone"), tuple(self.clones))
        self._check(clone, name)
        if not len(self.clones):
            self._before = freeze_shared(self.target, self)
        self.clones[name] = clone
        self._cut()
        return self

    def _check(self, clone: Clone, name: str) -> None:
        if not re.fullmatch(r"\w[\w+=-]*", name, re.ASCII):
            raise ConfigError(f"a clone cannot be called {name!r}: letters, digits, _ and - make a name")
        if name in self.clones or hasattr(self.clones, name):
            raise ConfigError(f"a clone cannot be called {name!r}: that name is taken; attach it under another one")
        if doubles := sorted(set(clone.class_names).intersection(self.class_names)):
            raise ConfigError(f"clone {name}: the network knows {', '.join(doubles)} already; detach one of the two")
        if len(self.clones) and any(isinstance(c.head, FullHead) for c in (clone, *self.clones.values())):
            raise ConfigError(
                f"clone {name}: a head of kind full answers for the classes of its target alone and stands beside no "
                f"other clone; make both with method.head=rows, or detach {', '.join(self.clones)}"
            )

    def detach(self, name: str) -> ClonedNetwork:
        """Remove a clone and return this network; the logits of the others stay as they are."""
        if name not in self.clones:
            raise ConfigError(f"there is no clone {name!r} to detach; attached are: {', '.join(self.clones) or 'none'}")
        del self.clones[name]
        if not len(self.clones) and self._before is not None:
            unfreeze_shared(self.target, self, self._before)
            self._before = None
        self._cut()
        return self

    def restore(self) -> nn.Module:
        """Remove all clones and return the target, bit for bit what it was (checked by its digest)."""
        for name in tuple(self.clones):
            self.detach(name)
        if digest(self.target) != self._digest:
            raise ConfigError(f"{type(self.target).__name__} was changed from outside while clones were attached")
        return self.target

    def list(self) -> dict[str, dict[str, Any]]:
        """The cards of all clones by name, in the order of their outputs."""
        return {name: clone.card for name, clone in self.clones.items()}

    def _cut(self) -> None:
        graph = self.traced.graph
        image = next(node for node in graph.nodes if node.op == "placeholder")
        there = {place.name: place.node for place in list_cuts(self.traced)}
        tapped = [there[clone.position.target.name] for clone in self.clones.values()]
        outputs = [*tapped, features_node(self.traced), logits_node(self.traced)]
        self._taps = (segment(self.traced.net, graph, [image], outputs),)

    def _apply(self, function: Any, recurse: bool = True) -> Any:
        moved = super()._apply(function, recurse)
        self._cut()
        return moved

    def forward(self, images: Tensor) -> Tensor:
        """Logits float32 [B, T + n]; without a clone those of the target, through its own untouched code."""
        if not len(self.clones):
            return self.target(images)
        *values, features, logits = self._taps[0](self.preprocess(images))
        logits = logits.float()
        for clone, value in zip(self.clones.values(), values, strict=True):
            logits = join_logits(logits, clone(value, features), clone.head)
        return logits


def attach(
    network: nn.Module, path: str | Path, name: str | None = None, *, sources: Sequence[Model] = ()
) -> ClonedNetwork:
    """Put the clones of a file on a network, or more of them on a `ClonedNetwork` (see its `attach`).

    ConfigError if the file is no clone file, was made with another network, or needs `sources` that are not given.
    """
    if not isinstance(network, ClonedNetwork):
        card = next(iter(read_cards(path).values()), {})
        network = ClonedNetwork(network, card.get("target_class_names"), size=card.get("target_size"))
    return network.attach(path, name, sources=sources)
