"""Every candidate position at once: both frozen networks run once for all branches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from recombine.models import Model
from recombine.models.graph import Traced, segment
from recombine.pnc.clone.branch import Branch, features_node, join_logits, logits_node

__all__ = ["Candidates", "build_taps"]


def build_taps(traced: Traced, branches: Sequence[Branch], side: str) -> nn.Module:
    """From normalised images to the values at the branches' cuts, then the features and the logits, in one pass.

    `side` is target or source.
    """
    image = next(node for node in traced.graph.nodes if node.op == "placeholder")
    places = [getattr(branch.position, side).node for branch in branches]
    return segment(traced.net, traced.graph, [image], [*places, features_node(traced), logits_node(traced)])


class Candidates(nn.Module):
    """A frozen target and source with a branch for each candidate position, and last one for the linear probe.

    Branches do not depend on each other.
    """

    def __init__(self, target: Model, source: Model, traced: tuple[Traced, Traced], branches: Sequence[Branch]) -> None:
        """`traced`: the graphs of target and source."""
        super().__init__()
        self.target, self.source = target.requires_grad_(False), source.requires_grad_(False)
        self.branches: Sequence[Branch] = nn.ModuleList(branches)  # type: ignore[assignment]
        self._traced = traced
        self._cut()

    def _cut(self) -> None:
        target, source = self._traced
        # in a tuple: the segments share the modules of both networks, which must be registered only once
        self._taps = build_taps(target, self.branches, "target"), build_taps(source, self.branches, "source")
        self._entries: dict[tuple[int, ...], nn.Module] = {}

    def _apply(self, function: Any, recurse: bool = True) -> Any:
        moved = super()._apply(function, recurse)
        self._cut()
        return moved

    @property
    def positions(self) -> Sequence[Branch]:
        """The branches that are candidates for a clone: all but the probe."""
        return self.branches[:-1]

    def select(self, numbers: Iterable[int]) -> Candidates:
        """The very branches of these numbers, and the probe."""
        chosen = [self.positions[number] for number in numbers]
        return Candidates(self.target, self.source, self._traced, [*chosen, self.branches[-1]])

    @torch.no_grad()
    def forward_target(self, normalised: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
        """Images as the target wants them -> values at each branch's cut, features [B, C_t], logits [B, T]."""
        *values, features, logits = self._taps[0](normalised)
        return values, features, logits.float()

    @torch.no_grad()
    def forward_source(self, normalised: Tensor) -> tuple[list[Tensor], Tensor]:
        """Images as the source wants them -> its values at each branch's entry, and its logits [B, S]."""
        *values, _, logits = self._taps[1](normalised)
        return values, logits.float()

    @torch.no_grad()
    def forward_entries(self, normalised: Tensor, numbers: tuple[int, ...]) -> list[Tensor]:
        """The source's values at the entries of some branches alone; no layer above them is computed."""
        if numbers not in self._entries:
            traced = self._traced[1]
            image = next(node for node in traced.graph.nodes if node.op == "placeholder")
            places = [self.branches[number].position.source.node for number in numbers]
            self._entries[numbers] = segment(traced.net, traced.graph, [image], places)
        return list(self._entries[numbers](normalised))

    def forward_modules(self, normalised: Tensor) -> Tensor:
        """Images as the source wants them -> logits [B, P, S] of the source with the masks of each branch."""
        values, _ = self.forward_source(normalised)
        logits = [branch.upper(value)[1].float() for branch, value in zip(self.branches, values, strict=True)]
        return torch.stack(logits, 1)

    def forward(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] -> logits [B, P, T + n] of the target with each of the P branches."""
        return self.forward_normalized(self.target.preprocess(images))

    def forward_normalized(self, normalised: Tensor) -> Tensor:
        """The same of images as the target wants them."""
        values, features, logits = self.forward_target(normalised)
        new = [branch(value, features).float() for branch, value in zip(self.branches, values, strict=True)]
        return torch.stack([join_logits(logits, value, b.head) for value, b in zip(new, self.branches, strict=True)], 1)
