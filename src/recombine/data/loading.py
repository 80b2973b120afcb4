"""What the three loaders have in common: which samples a step has, labels, moving to the device, augmentation."""

from __future__ import annotations

import hashlib
import math
import weakref
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from recombine.core.counter_rng import permutation
from recombine.core.errors import ConfigError
from recombine.core.labels import IGNORE
from recombine.core.types import Batch
from recombine.data.augment import Augment, Crop
from recombine.data.boxes import BoxReader
from recombine.data.crop import center_square, whole_square
from recombine.data.settings import cores
from recombine.data.storage import SampleReader, Storage, stored

__all__ = ["BatchLoader", "Split"]


@dataclass(frozen=True, eq=False)
class Split:
    """One stored split: where its samples come from and how they are kept."""

    dataset: str
    name: str
    samples: SampleReader
    storage: Storage
    size: int | None
    """Pixels, if all images are stored at one square size."""
    place: Path
    """Folder of the source files."""
    betons: Path
    classes: int
    """How many classes the source numbers."""
    mask_table: np.ndarray | None = None
    """uint8 [256], of images with masks: what is kept for each value of a mask, see `masks.stored_table`."""

    box_labels: np.ndarray | None = None
    """int64 [stored classes], of images with boxes: the label of each class, negative if it is not in use."""

    @property
    def is_dense(self) -> bool:
        """Whether labels have places in the image, so that whole images are seen, padded to squares."""
        return self.mask_table is not None or self.box_labels is not None

    @property
    def channels(self) -> int:
        """3, and with masks 4."""
        return 3 if self.mask_table is None else 4

    def image(self, i: int) -> np.ndarray:
        """Sample `i` as every loader sees it before cutting: uint8 [H, W, 3], its mask as a fourth channel."""
        where = self.samples.where(i)
        image = self.storage.decode(stored(self.samples[i], where, self.storage), where)
        self.check_size(i, *image.shape[:2])
        if self.mask_table is None:
            return image
        return np.dstack([image, self.mask_table[self.samples.mask(i)]])  # type: ignore[attr-defined]

    def check_size(self, i: int, height: int, width: int) -> None:
        """Raise ConfigError if sample `i` has not the one size that the others have."""
        if self.size is not None and (height, width) != (self.size, self.size):
            odd = f"{self.samples.where(i)} is {width} x {height} px while others are {self.size} x {self.size}"
            raise ConfigError(f"{odd}: dataset.storage=jpeg treats them as images of different sizes")

    @cached_property
    def pixels(self) -> np.ndarray:
        """All images of a split with one size, decoded once: uint8 [N, size, size, 3]."""
        side = self.size
        assert side is not None, "images of several sizes are no array"
        images = np.empty((len(self.samples), side, side, 3), np.uint8)
        with ThreadPoolExecutor(cores()) as pool:
            for i, image in enumerate(pool.map(self.image, range(len(images)))):
                images[i] = image
        return images


@dataclass(eq=False)
class BatchLoader:
    """Batches of one split; a subclass says how pixels are fetched. See `recombine.core.types.Loader`.

    Yielded tensors are owned by the caller: no buffer behind them is used again. An evaluation batch without a
    sample for this rank is not yielded.
    """

    split: Split
    indices: np.ndarray
    """Positions in the split, ascending."""
    labels: np.ndarray
    """int64 [stored samples]: the label of each stored position, negative where it has none or is not in use."""
    batch_size: int
    train: bool
    size: int
    """Images are yielded at size x size pixels."""
    augment: Augment | None
    seed: int
    rank: int
    world: int
    device: torch.device
    workers: int
    even: bool
    """Whether an epoch of which more than a tenth would be left over, smaller than a batch, is cut into steps of nearly
    one size, so that a small set is used whole. Not where a step's parts have to have the sizes that were asked for."""

    views: int | None = None
    """Each image comes in so many augmented views, one an epoch, in turn; None: a new one every epoch."""

    def __post_init__(self) -> None:
        if self.train and self.batch_size % self.world:
            raise ConfigError(f"batch_size={self.batch_size} does not divide over {self.world} processes")
        if self.train and len(self.indices) < self.batch_size:
            have = f"{self.split.dataset} {self.split.name} has {len(self.indices)} samples"
            most = len(self.indices) // self.world * self.world
            raise ConfigError(f"{have}, fewer than a batch of {self.batch_size}; batch_size={most} takes them all")
        self._live: weakref.WeakSet[Generator] = weakref.WeakSet()

    @property
    def samples(self) -> int:
        """Samples of one epoch over all ranks together."""
        return int(self._ends[-1]) if len(self) else 0

    @cached_property
    def digest(self) -> str:
        """Identity of stored samples, their indices and the size."""
        split = self.split
        table = () if split.mask_table is None else (split.mask_table.tobytes().hex(),)
        parts = (split.samples.identity, split.name, str(split.storage), str(self.size), *table)
        return hashlib.blake2b("\0".join(parts).encode() + self.indices.tobytes(), digest_size=16).hexdigest()

    def __len__(self) -> int:
        return len(self._ends)

    @cached_property
    def _ends(self) -> np.ndarray:
        """Where each step of an epoch ends in its order."""
        count, size = len(self.indices), self.batch_size
        whole, rest = divmod(count, size)
        if not self.train:
            return np.minimum(size * np.arange(1, -(-count // size) + 1), count)
        unit = math.lcm(math.gcd(size, 2), self.world)  # the same steps for one process and for two
        units, steps = count // unit, whole + 1
        if not self.even or 10 * rest <= count or units < steps:
            return size * np.arange(1, whole + 1)
        return unit * np.cumsum([units // steps + (k < units % steps) for k in range(steps)])

    def epoch(self, epoch: int, start: int = 0) -> Generator[Batch]:
        """This rank's batches from step `start` on."""
        return self.read(epoch if self.views is None else epoch % self.views, self.epoch_batches(epoch, start))

    def read(self, view: int, batches: list[np.ndarray]) -> Generator[Batch]:
        """Batches of these positions in the split, augmented as in epoch `view`."""
        generator = self._batches(view, batches)
        self._live.add(generator)
        return generator

    def epoch_batches(self, epoch: int, start: int = 0) -> list[np.ndarray]:
        """Positions of this rank's samples, one int64 array per step."""
        order = self.indices
        if self.train:
            order = order[permutation(self.seed, epoch, len(order))]
        steps = np.split(order[: self.samples], self._ends[:-1])[start : len(self)]
        mine = [np.array_split(step, self.world)[self.rank] for step in steps]
        return [batch for batch in mine if len(batch)]

    @property
    def crop(self) -> Crop | None:
        """The random crop made while decoding; None for the largest centred square."""
        return self.augment.crop if self.augment else None

    def close(self) -> None:
        """End unfinished epochs with their threads."""
        for generator in list(self._live):
            generator.close()

    def rectangles(self, view: int, index: np.ndarray, heights: np.ndarray, widths: np.ndarray) -> np.ndarray:
        """Which part of each image is seen in a view: int64 [n, 5], see `crop.cut`."""
        if self.crop is not None:
            return self.crop.rectangles((self.seed, view), index, heights, widths)
        return (whole_square if self.split.is_dense else center_square)(heights, widths)

    def _pixels(self, epoch: int, batches: list[np.ndarray]) -> Generator[Tensor]:
        """Host uint8 [b, size, size, channels] of each batch; its memory may be reused once the next one is read."""
        raise TypeError(f"{type(self).__name__} fetches no pixels")

    @cached_property
    def _label_table(self) -> Tensor:
        return torch.from_numpy(self.labels).to(self.device)

    def _batches(self, epoch: int, batches: list[np.ndarray]) -> Generator[Batch]:
        if not batches:
            return
        order = torch.from_numpy(np.concatenate(batches).astype(np.int64)).to(self.device)
        first = 0
        with closing(self._pixels(epoch, batches)) as pixels, closing(_moved(pixels, self.device)) as moved:
            for images in moved:
                index = order[first : first + len(images)]
                first += len(images)
                batch = self._batch(images.permute(0, 3, 1, 2), index, epoch)
                if batch.images.data_ptr() == images.data_ptr() and images.device.type == "cpu":
                    batch = batch._replace(images=batch.images.clone())  # still the loader's own buffer
                yield batch

    def _batch(self, images: Tensor, index: Tensor, epoch: int) -> Batch:
        if self.augment is not None:
            images = self.augment(images, index, epoch)
        if self.split.mask_table is not None:
            masks = IGNORE - images[:, 3].long()
            return Batch(images[:, :3].contiguous(memory_format=torch.channels_last), masks, index)
        if self.split.box_labels is not None:
            return Batch(images, self._boxes(index.cpu().numpy(), epoch), index)
        return Batch(images, self._label_table[index], index)

    def _boxes(self, index: np.ndarray, view: int) -> Tensor:
        samples, table = self.split.samples, self.split.box_labels
        assert isinstance(samples, BoxReader) and table is not None, "the split has boxes"
        rectangles = self.rectangles(view, index, *samples.sizes[index].T)
        return torch.from_numpy(samples.padded(index, rectangles, self.size, table)).to(self.device)


def _moved(pixels: Iterator[Tensor], device: torch.device) -> Generator[Tensor]:
    """The pixels on `device`; on a GPU copied in a separate stream, beside the running step."""
    if device.type != "cuda":
        for images in pixels:
            yield images.to(device)
        return
    stream, event = torch.cuda.Stream(device), None
    try:
        for images in pixels:
            pinned = images if images.is_pinned() else images.pin_memory()
            with torch.cuda.stream(stream):
                copy = pinned.to(device, non_blocking=True)
                event = stream.record_event()
            consumer = torch.cuda.current_stream(device)
            consumer.wait_event(event)
            copy.record_stream(consumer)
            yield copy
            event.synchronize()  # waits for the copy alone: only then may the loader write into its buffer again
    finally:
        if event is not None:
            event.synchronize()
