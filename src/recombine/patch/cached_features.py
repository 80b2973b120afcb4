"""Training on the values before the first patched place: only what trains is computed."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from recombine.core.types import Batch, Loader
from recombine.data.mixed import LoaderWrapper
from recombine.engine.evaluate import autocast, evaluating
from recombine.patch.patched import TaskNetwork
from recombine.patch.tasks import Task

__all__ = ["CachedFeatureLoader", "cache_features"]


def cache_features(
    loaders: list[Loader], tasks: Sequence[Task], network: TaskNetwork, precision: str, limit_gib: float
) -> list[Loader]:
    """Loaders of cached prefix values, where images are not augmented and the cache stays within the limit.

    Else the loaders of images as they are. One process only: a process does not see the images of the others.
    """
    samples = sum(len(task.data.indices("train")) for task in tasks)
    fits = network.prefix_floats * samples * 4 <= limit_gib * 2**30
    if not fits or not network.frozen or any(loader.augment is not None for loader in loaders):
        return loaders
    return [
        CachedFeatureLoader(loader, task.eval_loader("train"), network, precision)
        for loader, task in zip(loaders, tasks, strict=True)
    ]


class CachedFeatureLoader(LoaderWrapper):
    """A training loader whose batches hold the values of the frozen prefix, computed once.

    Only for data that are not augmented: order, labels and digest are those of the loader of images.
    """

    def __init__(self, train: Loader, every: Loader, network: TaskNetwork, precision: str) -> None:
        """`train` gives the order, `every` all its samples once, in ascending order."""
        super().__init__(train)
        self.every, self.network, self.precision = every, network, precision

    @cached_property
    def _store(self) -> tuple[Tensor, Tensor]:
        values, labels = [], []
        with evaluating(self.network), closing(self.every.epoch(0)) as batches:
            for batch in batches:
                with autocast(self.precision, batch.images.device):
                    values.append(self.network.prefix(batch.images))
                labels.append(batch.labels.clone())
        return torch.cat(values), torch.cat(labels)

    def epoch(self, epoch: int, start: int = 0) -> Generator[Batch]:
        """Batches of prefix values in the order of the loader of images."""
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
