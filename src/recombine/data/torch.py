"""The loader without FFCV: the source's own files, the same samples, order and pixels.

Images stored raw at one small size are decoded once and kept in memory; others are decoded by the worker processes
of a torch DataLoader. This loader and the FFCV one both decode JPEG with libjpeg-turbo's accurate transform and resize
with OpenCV's area averaging, so that not a single pixel differs (tests/data/test_loaders.py, real photographs).
"""

from __future__ import annotations

from collections.abc import Generator
from functools import partial
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from recombine.data.crop import cut
from recombine.data.loading import BatchLoader

__all__ = ["TorchLoader"]


class TorchLoader(BatchLoader):
    """Decodes with Pillow; small sets of one size are decoded once and indexed."""

    def _pixels(self, epoch: int, batches: list[np.ndarray]) -> Generator[Tensor]:
        if self.split.size is not None and self.crop is None:
            for batch in batches:
                yield torch.from_numpy(self.split.pixels[batch])
            return
        dataset = _Decoded(self, epoch)
        workers: dict[str, Any] = {}
        if self.workers:
            workers = {"num_workers": self.workers, "worker_init_fn": _single_thread}
        sampler: Any = batches  # lists of positions, each for one call of __getitems__
        # a generator of its own: DataLoader would draw from torch's global one and so change the training
        yield from DataLoader(
            dataset, batch_sampler=sampler, collate_fn=torch.from_numpy, generator=torch.Generator(), **workers
        )


class _Decoded(Dataset):
    """Decoded, cut and resized images; indexed by whole batches of positions."""

    def __init__(self, loader: BatchLoader, view: int) -> None:
        self.split, self.size = loader.split, loader.size
        self.rectangles = partial(loader.rectangles, view)

    def __getitems__(self, index: np.ndarray) -> np.ndarray:
        images = [self.split.image(i) for i in index]
        heights, widths = (np.array([image.shape[k] for image in images]) for k in (0, 1))
        rectangles = self.rectangles(index, heights, widths)
        return np.stack([cut(*pair, self.size) for pair in zip(images, rectangles, strict=True)])


def _single_thread(_worker: int) -> None:
    cv2.setNumThreads(0)  # OpenCV's thread pool does not survive a fork
