"""Training a patch: only what trains is computed."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from src.core.errors import ConfigError
from src.core.evaluate import autocast, evaluating
from src.core.method import Supervised
from src.core.types import Batch, Loader
from src.patch.patched import Patched

__all__ = ["Joint", "Kept", "Relabelled", "TaskTraining", "shares"]


class TaskTraining(Supervised):
    """Cross entropy of one task; of a `Patched` net with a frozen base only the patch trains."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net)
        if isinstance(net, Patched) and net.frozen:
            self.frozen = ("net.base",)


class Kept:
    """A training loader whose batches hold what the frozen prefix makes of the images, computed once.

    Only for data that are not augmented: order, labels and digest are those of the loader it stands for.
    """

    def __init__(self, train: Loader, every: Loader, patched: Patched, precision: str) -> None:
        """`train` gives the order, `every` all its samples once, in ascending order."""
        self.train, self.every, self.patched, self.precision = train, every, patched, precision
        self.batch_size, self.samples, self.digest = train.batch_size, train.samples, train.digest

    def __len__(self) -> int:
        return len(self.train)

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
        batches = self.train.epoch_batches(epoch, start)
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

    def close(self) -> None:
        """Nothing is open."""


class Relabelled:
    """A loader whose labels are moved up by `offset`: one task's share of a common label space."""

    def __init__(self, loader: Loader, offset: int) -> None:
        self.loader, self.offset = loader, offset
        self.batch_size, self.samples = loader.batch_size, loader.samples
        self.digest = f"{loader.digest}+{offset}"
        self.close = loader.close

    def __len__(self) -> int:
        return len(self.loader)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The same batches with other labels."""
        for batch in self.loader.epoch(epoch, start):
            yield batch._replace(labels=batch.labels + self.offset)


class Joint:
    """Several tasks in every batch, each with as many samples as its share of all; an epoch ends with the first task.

    Deviation: the paper concatenates the sets and shuffles; fixed shares keep batches of differently stored sets apart
    and leave out at most the remainder of each set, another one every epoch.
    """

    def __init__(self, loaders: Sequence[Loader], fit: Callable[[Tensor], Tensor]) -> None:
        """`fit` brings images [B, 3, H, W] to the one size they are put together at."""
        self.loaders, self.fit = loaders, fit
        self.batch_size = sum(loader.batch_size for loader in loaders)
        self.samples = len(self) * self.batch_size
        self.digest = " ".join(loader.digest for loader in loaders)

    def __len__(self) -> int:
        return min(len(loader) for loader in self.loaders)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Batches of all tasks; `index` counts within a task."""
        epochs = [loader.epoch(epoch, start) for loader in self.loaders]
        try:
            for _ in range(start, len(self)):
                parts = [next(batches) for batches in epochs]
                images = [part.images if part.images.ndim == 2 else self.fit(part.images) for part in parts]
                yield Batch(torch.cat(images), *(torch.cat([part[k] for part in parts]) for k in (1, 2)))
        finally:
            for batches in epochs:
                batches.close()

    def close(self) -> None:
        """Close all loaders."""
        for loader in self.loaders:
            loader.close()


def shares(sizes: Sequence[int], batch_size: int, world: int = 1) -> list[int]:
    """Samples of each task in a batch: in proportion to the sizes, multiples of `world`, together `batch_size`."""
    units = batch_size // world
    if units < len(sizes):
        raise ConfigError(f"batch_size={batch_size} cannot hold a sample of each of {len(sizes)} tasks per process")
    counts = [max(1, units * size // sum(sizes)) for size in sizes]
    while sum(counts) != units:
        step = 1 if sum(counts) < units else -1
        wanted = [step * (units * size / sum(sizes) - count) for size, count in zip(sizes, counts, strict=True)]
        able = [k for k, count in enumerate(counts) if step > 0 or count > 1]
        counts[max(able, key=lambda k: wanted[k])] += step
    return [count * world for count in counts]
