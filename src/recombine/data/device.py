"""The loader for small sets: all images of the split lie on the device, filled once through another loader."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from recombine.core.errors import ConfigError
from recombine.core.labels import IGNORE
from recombine.core.types import Batch
from recombine.data.loading import BatchLoader

__all__ = ["DeviceLoader"]


@dataclass(eq=False)
class DeviceLoader(BatchLoader):
    """Indexes a uint8 tensor on the device; `filler` is the class of loader that fetches the pixels once."""

    filler: type[BatchLoader] = BatchLoader

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.augment is not None and self.augment.crop is not None:
            crop = type(self.augment.crop).__name__
            raise ConfigError(f"loader=device keeps one size and cannot do {crop}: loader=ffcv or loader=torch")

    @cached_property
    def _store(self) -> Tensor:
        fields = {name: getattr(self, name) for name in BatchLoader.__dataclass_fields__}
        fields |= {"train": False, "augment": None, "rank": 0, "world": 1, "batch_size": 256}
        fill = self.filler(**fields)
        store = torch.empty(
            (len(self.indices), self.split.channels, self.size, self.size),
            dtype=torch.uint8,
            device=self.device,
            memory_format=torch.channels_last,
        )
        first = 0
        for batch in fill.epoch(0):
            store[first : first + len(batch.images), :3] = batch.images
            if self.split.mask_table is not None:
                store[first : first + len(batch.images), 3] = (IGNORE - batch.labels).to(torch.uint8)
            first += len(batch.images)
        fill.close()
        return store

    def _batches(self, epoch: int, batches: list[np.ndarray]) -> Generator[Batch]:
        if not batches:
            return
        store = self._store
        order = np.concatenate(batches)
        rows = torch.from_numpy(np.searchsorted(self.indices, order)).to(self.device)
        index = torch.from_numpy(order.astype(np.int64)).to(self.device)
        first = 0
        for batch in batches:
            part = slice(first, first + len(batch))
            first += len(batch)
            yield self._batch(store[rows[part]], index[part], epoch)
