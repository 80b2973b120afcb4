"""Several data sets in one stream of batches, with one label space."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing

import numpy as np
import torch
from torch import Tensor

from recombine.core.errors import ConfigError
from recombine.core.types import Batch, Loader
from recombine.data.augment import Augment, Crop

__all__ = ["LabelOffsetLoader", "LoaderWrapper", "MixedLoader", "RepeatedLoader", "shares"]


class LoaderWrapper:
    """A loader that changes what another one yields; a subclass overrides what differs."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    @property
    def batch_size(self) -> int:
        """Samples in a step over all ranks together."""
        return self.loader.batch_size

    @property
    def samples(self) -> int:
        """Samples of one epoch over all ranks together."""
        return self.loader.samples

    @property
    def digest(self) -> str:
        """Identity of the stored samples."""
        return self.loader.digest

    @property
    def indices(self) -> np.ndarray:
        """Positions of the samples in their split."""
        return self.loader.indices

    @property
    def size(self) -> int | None:
        """Side of the images in pixels."""
        return self.loader.size

    @property
    def augment(self) -> Augment | None:
        """Augmentation of the images."""
        return self.loader.augment

    @property
    def crop(self) -> Crop | None:
        """The random crop that is part of it."""
        return self.loader.crop

    def __len__(self) -> int:
        return len(self.loader)

    def epoch(self, epoch: int, start: int = 0) -> Generator[Batch]:
        """The batches of the loader behind."""
        with closing(self.loader.epoch(epoch, start)) as batches:
            yield from map(self.change, batches)

    def change(self, batch: Batch) -> Batch:
        """What becomes of a batch."""
        return batch

    def epoch_batches(self, epoch: int, start: int = 0) -> list[np.ndarray]:
        """Positions of the samples of each batch."""
        return self.loader.epoch_batches(epoch, start)

    def close(self) -> None:
        """Close the loader behind."""
        self.loader.close()


class LabelOffsetLoader(LoaderWrapper):
    """A loader whose labels are moved up by `offset`: one task's part of a common label space."""

    def __init__(self, loader: Loader, offset: int) -> None:
        super().__init__(loader)
        self.offset = offset

    @property
    def digest(self) -> str:
        """Identity of the stored samples and the offset."""
        return f"{self.loader.digest}+{self.offset}"

    def change(self, batch: Batch) -> Batch:
        """The same batch with other labels."""
        return batch._replace(labels=batch.labels + self.offset)


class RepeatedLoader(LoaderWrapper):
    """Several epochs of a small set as one, each in another order."""

    def __init__(self, loader: Loader, times: int) -> None:
        super().__init__(loader)
        self.times = times

    @property
    def samples(self) -> int:
        """Samples of one epoch over all ranks together, each counted as often as it comes."""
        return self.loader.samples * self.times

    @property
    def digest(self) -> str:
        """Identity of the stored samples and the number of times."""
        return f"{self.loader.digest}x{self.times}"

    def __len__(self) -> int:
        return len(self.loader) * self.times

    def epoch(self, epoch: int, start: int = 0) -> Generator[Batch]:
        """The batches of `times` epochs of the loader behind."""
        for inner, first in self._inner_epochs(epoch, start):
            with closing(self.loader.epoch(inner, start=first)) as batches:
                yield from batches

    def epoch_batches(self, epoch: int, start: int = 0) -> list[np.ndarray]:
        """Positions of the samples of each batch."""
        return [
            batch
            for inner, first in self._inner_epochs(epoch, start)
            for batch in self.loader.epoch_batches(inner, first)
        ]

    def _inner_epochs(self, epoch: int, start: int) -> list[tuple[int, int]]:
        """The epochs of the loader behind, each with the step to start at."""
        first, start = divmod(start, len(self.loader))
        return [(epoch * self.times + turn, start if turn == first else 0) for turn in range(first, self.times)]


class MixedLoader:
    """Several tasks in every batch, in proportion to their sizes; an epoch ends with the first task.

    Deviation: Delta-Patching concatenates the sets and shuffles; fixed proportions keep batches of differently stored
    sets apart and leave out at most the remainder of each set, another one every epoch.
    """

    def __init__(self, loaders: Sequence[Loader], fit: Callable[[Tensor], Tensor]) -> None:
        """`fit` brings images [B, 3, H, W] to the one size they are put together at."""
        self.loaders, self.fit = loaders, fit
        self.batch_size = sum(loader.batch_size for loader in loaders)
        self.samples = len(self) * self.batch_size
        self.digest = " ".join(loader.digest for loader in loaders)
        self.indices = np.concatenate([loader.indices for loader in loaders])

    @property
    def size(self) -> int | None:
        """Side of the images in pixels before `fit`; None if the tasks differ."""
        sizes = {loader.size for loader in self.loaders}
        return sizes.pop() if len(sizes) == 1 else None

    @property
    def augment(self) -> Augment | None:
        """Augmentation of the first task that has one."""
        return next((loader.augment for loader in self.loaders if loader.augment is not None), None)

    @property
    def crop(self) -> Crop | None:
        """The random crop of the first task that has one."""
        return next((loader.crop for loader in self.loaders if loader.crop is not None), None)

    def __len__(self) -> int:
        return min(len(loader) for loader in self.loaders)

    def epoch(self, epoch: int, start: int = 0) -> Generator[Batch]:
        """Batches of all tasks; `index` counts within a task."""
        epochs = [loader.epoch(epoch, start) for loader in self.loaders]
        try:
            for _ in range(start, len(self)):
                parts = [next(batches) for batches in epochs]
                images = [part.images if part.images.ndim == 2 else self.fit(part.images) for part in parts]
                labels, index = (torch.cat([part[k] for part in parts]) for k in (1, 2))
                yield Batch(torch.cat(images), labels, index)
        finally:
            for batches in epochs:
                batches.close()

    def epoch_batches(self, epoch: int, start: int = 0) -> list[np.ndarray]:
        """Positions of the samples of each batch, each within its task."""
        parts = zip(*(loader.epoch_batches(epoch, start) for loader in self.loaders), strict=False)
        return [np.concatenate(part) for part in parts]

    def close(self) -> None:
        """Close all loaders."""
        for loader in self.loaders:
            loader.close()


def shares(sizes: Sequence[int], batch_size: int, world: int = 1) -> list[int]:
    """Samples of each task in a batch: in proportion to the sizes, multiples of `world`, together `batch_size`."""
    units = batch_size // world
    if units < len(sizes):
        raise ConfigError(
            f"batch_size={batch_size} cannot hold a sample of each of {len(sizes)} tasks per process; "
            f"try batch_size={len(sizes) * world}"
        )
    counts = [max(1, units * size // sum(sizes)) for size in sizes]
    while sum(counts) != units:
        step = 1 if sum(counts) < units else -1
        missing = [step * (units * size / sum(sizes) - count) for size, count in zip(sizes, counts, strict=True)]
        able = [k for k, count in enumerate(counts) if step > 0 or count > 1]
        counts[max(able, key=missing.__getitem__)] += step
    return [count * world for count in counts]
