"""A network with clones of parts of others: none of its weights changed, every clone removable (section 11.1)."""

from __future__ import annotations

import re
from copy import deepcopy

import torch
from torch import Tensor, nn

from recombine.core.errors import ConfigError
from recombine.models.freeze import ModuleState, digest, freeze, thaw
from recombine.models.graph import segment, traced
from recombine.models.model import Model
from recombine.pnc.clone.branch import Branch, FullHead, RowsHead, features_of, joined
from recombine.pnc.clone.positions import Position, places

__all__ = ["Clone", "ClonedNetwork"]


class Clone(nn.Module):
    """What a branch has learned, cut out: the kept filters of the source's upper layers, adapter and head.

    Holds copies and no reference to the source; of it at most `scale` and `bias` train any more, where clones of
    several sources are calibrated.
    """

    def __init__(self, branch: Branch, class_names: list[str]) -> None:
        super().__init__()
        (source,) = branch.source
        self.position: Position = branch.position
        self.outputs, self.class_names, self.masks = branch.outputs, list(class_names), branch.masks()
        self.kinds = branch.kinds
        wanted = [features_of(source), source.node(source.head)]
        # a graph module holds what its graph calls: the layers above the cut, and of them the filters that are kept
        self.module = segment(branch.extracted(), source.graph, [branch.position.source.node], wanted)
        self.adapter, self.head = deepcopy(branch.adapter), deepcopy(branch.head)
        kept = branch.kept_features()
        if kept is not None and isinstance(self.head, RowsHead):
            self.head.narrow(kept)
        self.scale, self.bias = nn.Parameter(torch.ones(())), nn.Parameter(torch.zeros(()))
        self.requires_grad_(False).eval()

    def forward(self, value: Tensor, target_features: Tensor) -> Tensor:
        """The target's value at the position and its features [B, C_t] -> what `joined` takes: new logits, or all."""
        features, logits = self.module(self.adapter(value))
        return self.scale * self.head(target_features, features, logits[:, self.outputs]).float() + self.bias

    def parameters_by_part(self) -> dict[str, float]:
        """Weights of the cloned layers, and those that were learned."""
        added = sum(p.numel() for part in (self.adapter, self.head) for p in part.parameters())
        return {
            "module_parameters": float(sum(p.numel() for p in self.module.parameters())),
            "added_parameters": float(added),
        }


class ClonedNetwork(nn.Module):
    """A target with any number of clones: its own logits, then those of each clone in the order they were attached.

    The target runs once for all clones. While one is attached it is frozen and in eval mode.
    """

    def __init__(self, target: nn.Module, class_names: list[str] | None = None, size: int | None = None) -> None:
        """`target`: a `Model` (uint8 images) or a plain timm or torchvision network (floats as it wants them)."""
        super().__init__()
        self.target = target
        self.preprocess = target.preprocess if isinstance(target, Model) else nn.Identity()
        self.traced = traced(target, size)
        self.clones = nn.ModuleDict()
        self.own_class_names = class_names
        self._digest = digest(target)
        self._before: ModuleState | None = None

    @property
    def class_names(self) -> list[str]:
        """Of all outputs, in their order."""
        head = self.traced.net.get_submodule(self.traced.head)
        own = self.own_class_names or [f"class {i}" for i in range(head.out_features)]
        return [*own, *(name for clone in self.clones.values() for name in clone.class_names)]

    def train(self, mode: bool = True) -> ClonedNetwork:
        """The target and its clones stay in eval mode while there is a clone."""
        return super().train(mode and not len(self.clones))

    def attach(self, clone: Clone, name: str) -> ClonedNetwork:
        """Add a clone; its outputs come last. ConfigError if its name or one of its classes is taken."""
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
        if not len(self.clones):
            self._before = freeze(self.target)
        self.clones[name] = clone
        self._cut()
        return self

    def detach(self, name: str) -> ClonedNetwork:
        """Remove a clone; the logits of the others stay as they are."""
        if name not in self.clones:
            raise ConfigError(f"there is no clone {name!r} to detach; attached are: {', '.join(self.clones) or 'none'}")
        del self.clones[name]
        if not len(self.clones) and self._before is not None:
            thaw(self.target, self._before)
            self._before = None
        self._cut()
        return self

    def restore(self) -> nn.Module:
        """Remove all clones; returns the target, bit for bit what it was (checked by its digest)."""
        for name in tuple(self.clones):
            self.detach(name)
        if digest(self.target) != self._digest:
            raise ConfigError(f"{type(self.target).__name__} was changed from outside while clones were attached")
        return self.target

    def _cut(self) -> None:
        graph = self.traced.graph
        image = next(node for node in graph.nodes if node.op == "placeholder")
        there = {place.name: place.node for place in places(self.traced)}
        tapped = [there[clone.position.target.name] for clone in self.clones.values()]
        outputs = [*tapped, features_of(self.traced), self.traced.node(self.traced.head)]
        self._taps = (segment(self.traced.net, graph, [image], outputs),)

    def _apply(self, function, recurse: bool = True):
        moved = super()._apply(function, recurse)
        self._cut()
        return moved

    def forward(self, images: Tensor) -> Tensor:
        """Logits float32 [B, T + n]; without a clone those of the target, through its own untouched code."""
        if not len(self.clones):
            return self.target(images)
        *values, features, own = self._taps[0](self.preprocess(images))
        logits = own.float()
        for clone, value in zip(self.clones.values(), values, strict=True):
            logits = joined(logits, clone(value, features), clone.head)
        return logits
