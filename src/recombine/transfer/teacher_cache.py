"""Logits of networks that do not train: computed for each batch, or looked up where the same images come back.

Training without augmentation, or with horizontal flips alone, shows each network the same one or two views of every
image in every epoch. Their logits are computed once, stored beside other predictions and shared by all runs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from recombine.core.counter_rng import uniform
from recombine.core.types import Batch, Loader
from recombine.data.augment import STREAMS, HorizontalFlip
from recombine.engine.evaluate import predict
from recombine.models import Model

__all__ = ["Flipped", "FrozenTeachers", "View", "views"]

View = Callable[[Tensor, int], Tensor]
"""From dataset indices [B] and epoch to which view of each image it is, int64 [B]: 0 as stored, 1 mirrored."""


class Flipped(nn.Module):
    """A model that sees its images mirrored."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model, self.canvas = model, model.canvas

    def forward(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] -> logits [B, C]."""
        return self.model(images.flip(-1))

    def digest(self) -> str:
        """Identity of the function."""
        return hashlib.sha256(f"flipped {self.model.digest()}".encode()).hexdigest()[:32]


class FrozenTeachers(nn.Module):
    """K trained networks that stay as they are; `forward` gives their logits for a batch."""

    def __init__(self, models: Sequence[Model]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models).eval().requires_grad_(False)
        self.view: View | None = None
        self.tables: list[Tensor] = []
        self.rows: Tensor | None = None
        self.epoch = 0

    def remember(self, plain: Loader, view: View, views: int, cache: Path | None, precision: str) -> None:
        """Compute the logits of all samples of `plain` (the training samples, not augmented), or take stored ones.

        They are kept on the device as float32, as a live network gives them, so that results stay the same.
        """
        for model in self.models:
            seen = [predict(model, plain, cache, precision=precision)]
            if views == 2:
                seen.append(predict(Flipped(model), plain, cache, precision=precision))
            device = next(model.parameters()).device
            self.tables.append(torch.stack([predictions.logits for predictions in seen]).to(device))
            index = seen[0].index
        rows = torch.full((int(index.max()) + 1,), -1, dtype=torch.int64)
        rows[index] = torch.arange(len(index))
        self.rows, self.view = rows.to(device), view

    @torch.no_grad()
    def forward(self, batch: Batch) -> list[Tensor]:
        """Logits [B, C] of each network."""
        if self.view is None:
            return [model(batch.images) for model in self.models]
        view, rows = self.view(batch.index, self.epoch), self.rows[batch.index]
        return [table[view, rows] for table in self.tables]


def views(loader: Loader) -> tuple[View, int] | None:
    """Which view a training loader shows, and how many there are; None if its augmentation makes more than two."""
    augment = loader.augment
    operations = [] if augment is None else augment.operations
    if augment is not None and augment.crop is not None:
        return None
    if not operations:
        return (lambda index, epoch: torch.zeros_like(index)), 1
    if len(operations) > 1 or not isinstance(operations[0], HorizontalFlip):
        return None
    seed, p = augment.seed, operations[0].p
    return (lambda index, epoch: (uniform(seed, epoch, index, STREAMS) < p).long()), 2
