"""Other images and labels in the place of some: what was not chosen by them does not change."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from recombine.data.loading import BatchLoader


def spoil(monkeypatch, which: Callable[[BatchLoader, Tensor], bool | Tensor]) -> None:
    """Invert the images, and reverse the order of the labels, of the samples that `which(loader, positions)` marks."""
    original = BatchLoader.read

    def read(self, view, batches):
        for batch in original(self, view, batches):
            marked = torch.as_tensor(which(self, batch.index)).expand(len(batch.index))
            places = marked.nonzero()[:, 0]
            images, labels = batch.images.clone(), batch.labels.clone()
            images[places] = 255 - images[places]
            labels[places] = labels[places].flip(0)
            yield batch._replace(images=images, labels=labels)

    monkeypatch.setattr(BatchLoader, "read", read)


def of_test(loader: BatchLoader, positions: Tensor) -> bool:
    """All test images."""
    return loader.split.name == "test"
