"""Training a patch: only what trains is computed."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from recombine.core.types import Batch, Loader
from recombine.data.mixed import LoaderWrapper
from recombine.engine.evaluate import autocast, evaluating
from recombine.engine.method import Supervised
from recombine.patch.patched import Patched

__all__ = ["CachedFeatureLoader", "TaskTraining"]


class TaskTraining(Supervised):
    """Cross entropy of one task; of a `Patched` net with a frozen base only the patch trains."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net)
        if isinstance(net, Patched) and net.frozen:
            self.frozen = ("net.base",)


class CachedFeatureLoader(LoaderWrapper):
    """A training loader whose batches hold what the frozen prefix makes of the images, computed once.

    Only for data that are not augmented: order, labels and digest are those of the loader it stands for.
    """

    def __init__(self, train: Loader, every: Loader, patched: Patched, precision: str) -> None:
        """`train` gives the order, `every` all its samples once, in ascending order."""
        super().__init__(train)
        self.every, self.patched, self.precision = every, patched, precision

    @cached_property
    def _store(self) -> tuple[Tensor, Tensor]:
        values, labels = [], []
        with evaluating(self.patched), closing(self.every.epoch(0)) as batches:
            for batch in batches:
                with autocast(self.precision, batch.images.device):
                    values.append(self.patched.prefix(batch.images))
                labels.append(batch.labels.clone())
        return torch.cat(values), torch.cat(labels)

    def epoch(self, epoch: int, start: int = 0) -> Generator[Batch]:
        """Batches in the order of the loader it stands for."""
        values, labels = self._store
        batches = self.loader.epoch_batches(epoch, start)
        if not batches:
            return
        # moved once an epoch: in the loop the host must not wait for the device
        order = np.concatenate(batches).astype(np.int64)
        rows = torch.from_numpy(np.searchsorted(self.every.indices, order)).to(labels.device)
        index = torch.from_numpy(order).to(labels.device)
        first = 0
        for batch in batches:
            part = slice(first, first + len(batch))
            first += len(batch)
            yield Batch(values[rows[part]], labels[rows[part]], index[part])
