"""Several data sets in one stream of batches, with one label space."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from recombine.core.errors import ConfigError
from recombine.core.types import Batch, Loader

__all__ = ["LabelOffsetLoader", "MixedLoader", "RepeatedLoader", "shares"]


class LabelOffsetLoader:
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


class MixedLoader:
    """Several tasks in every batch, each with as many samples as its share of all; an epoch ends with the first task.

    Deviation: Delta-Patching concatenates the sets and shuffles; fixed shares keep batches of differently stored sets
    apart and leave out at most the remainder of each set, another one every epoch.
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


class RepeatedLoader:
    """Several passes over a small set as one epoch, each in an order of its own."""

    def __init__(self, loader: Loader, times: int) -> None:
        self.loader, self.times = loader, times
        self.batch_size, self.samples = loader.batch_size, loader.samples * times
        self.digest = f"{loader.digest}x{times}"
        self.close = loader.close

    def __len__(self) -> int:
        return len(self.loader) * self.times

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of `times` epochs of the loader behind."""
        first, start = divmod(start, len(self.loader))
        for turn in range(first, self.times):
            yield from self.loader.epoch(epoch * self.times + turn, start=start)
            start = 0


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
