"""Logits of networks that do not train: computed for each batch, or looked up where the same images come back.

Training without augmentation, or with horizontal flips alone, shows each network the same one or two forms of every
image in every epoch. Their logits are computed once, stored beside other predictions and shared by all runs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from recombine.core.counter_rng import uniform
from recombine.core.types import Batch, Loader
from recombine.data.augment import STREAMS, Augment, HorizontalFlip
from recombine.engine.evaluate import predict
from recombine.models import Model

__all__ = ["FrozenTeachers", "Mirrored", "Mirroring", "find_mirroring"]


class Mirroring(NamedTuple):
    """How a training loader mirrors its images."""

    forms: int
    """1: images come as stored. 2: as stored or mirrored."""
    form: Callable[[Tensor, int], Tensor]
    """From dataset indices [B] and epoch to the form of each image, int64 [B]: 0 as stored, 1 mirrored."""


class Mirrored(nn.Module):
    """A model whose images are mirrored first."""

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

    models: Sequence[Model]

    def __init__(self, models: Sequence[Model]) -> None:
        super().__init__()
        self.models = cast("Sequence[Model]", nn.ModuleList(models).eval().requires_grad_(False))
        self.mirroring: Mirroring | None = None
        self.tables: list[Tensor] = []
        """Cached logits [forms, n, C] of each network."""
        self.rows: Tensor | None = None
        """Row of each dataset index in the tables."""
        self.epoch = 0

    def cache_logits(
        self,
        loader: Loader,
        mirroring: Mirroring,
        cache: Path | None,
        precision: str,
        stopped: Callable[[], object] = lambda: None,
    ) -> None:
        """Compute the logits of all samples of `loader` (training samples, not augmented), or take those in `cache`.

        They are kept on the device as float32, as a live network gives them, so that results stay the same. `stopped`
        is called while another process computes them.
        """
        options: dict[str, Any] = {"precision": precision, "stopped": stopped}
        for model in self.models:
            predictions = [predict(model, loader, cache, **options)]
            if mirroring.forms == 2:
                predictions.append(predict(Mirrored(model), loader, cache, **options))
            device = next(model.parameters()).device
            self.tables.append(torch.stack([each.logits for each in predictions]).to(device))
            index = predictions[0].index
        rows = torch.full((int(index.max()) + 1,), -1, dtype=torch.int64)
        rows[index] = torch.arange(len(index))
        self.rows, self.mirroring = rows.to(device), mirroring

    @torch.no_grad()
    def forward(self, batch: Batch) -> list[Tensor]:
        """Logits [B, C] of each network."""
        if self.mirroring is None or self.rows is None:
            return [model(batch.images) for model in self.models]
        form, rows = self.mirroring.form(batch.index, self.epoch), self.rows[batch.index]
        return [table[form, rows] for table in self.tables]


def find_mirroring(augment: Augment | None) -> Mirroring | None:
    """What an augmentation does, if it is to mirror images or nothing; None for any other."""
    if augment is None or (augment.crop is None and not augment.operations):
        return Mirroring(1, lambda index, epoch: torch.zeros_like(index))
    if augment.crop is not None or len(augment.operations) > 1:
        return None
    (operation,), seed = augment.operations, augment.seed
    if not isinstance(operation, HorizontalFlip):
        return None
    p = operation.p
    return Mirroring(2, lambda index, epoch: torch.as_tensor(uniform(seed, epoch, index, STREAMS) < p).long())
