"""A clone: what a branch has learned, cut out of both networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from recombine.models.graph import segment
from recombine.pnc.clone.branch import Branch, RowsHead, features_node, logits_node
from recombine.pnc.clone.positions import Position

__all__ = ["Clone"]


class Clone(nn.Module):
    """The kept filters of the source's upper layers, adapter and head.

    Holds copies and no reference to the source; only `scale` and `bias` may still train, where clones of several
    sources are calibrated.
    """

    def __init__(self, branch: Branch, class_names: Sequence[str], card: Mapping[str, Any] | None = None) -> None:
        """`card`: of a clone that comes from a file."""
        super().__init__()
        (source,) = branch.source
        self.position: Position = branch.position
        self.outputs, self.class_names, self.masks = branch.outputs, list(class_names), branch.kept_channels()
        self.columns: Tensor
        self.register_buffer("columns", branch.columns.clone(), persistent=False)
        self.kinds = branch.kinds
        self.card = {**self._describe(), **(card or {})}
        """Its classes and where it sits; in files also its target, its source and what it scored."""
        values = [features_node(source), logits_node(source)]
        # a graph module holds what its graph calls: the layers above the cut, and of them the filters that are kept
        self.module = segment(branch.extract(), source.graph, [branch.position.source.node], values)
        self.adapter, self.head = branch.extract_adapter(), deepcopy(branch.head)
        kept = branch.kept_features()
        if kept is not None and isinstance(self.head, RowsHead):
            self.head.narrow(kept)
        self.scale, self.bias = nn.Parameter(torch.ones(())), nn.Parameter(torch.zeros(()))
        self.requires_grad_(False).eval()

    def _describe(self) -> dict[str, Any]:
        place = {"position": self.position.number, "source_position": self.position.source_number}
        return {"class_names": self.class_names, "outputs": self.outputs, **place, **self.kinds}

    def forward(self, value: Tensor, target_features: Tensor) -> Tensor:
        """The target's value at the position and its features [B, C_t] -> new logits, or all (see `join_logits`)."""
        features, logits = self.module(self.adapter(value))
        return self.scale * self.head(target_features, features, logits[:, self.columns]).float() + self.bias

    def count_parameters(self) -> dict[str, float]:
        """Weights of the cloned layers, those that are masked left out, and those that were learned."""
        added = sum(p.numel() for part in (self.adapter, self.head) for p in part.parameters())
        module = sum(p.numel() for p in self.module.parameters())
        if self.kinds["granularity"] == "weight":
            module -= sum(int((~mask).sum()) for mask in self.masks)
        return {"module_parameters": float(module), "added_parameters": float(added)}
