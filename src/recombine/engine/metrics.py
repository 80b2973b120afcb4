"""What is measured: state stays on the device, is summed over processes and read once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from recombine.core.distributed import all_reduce_sum
from recombine.core.errors import ConfigError
from recombine.core.labels import IGNORE
from recombine.core.types import Batch

__all__ = ["Accuracy", "IoU", "Mean", "Metric", "PerClass"]


class Metric:
    """Sums over samples; a subclass says what is added for a batch and what the sums mean."""

    def __init__(self, size: int) -> None:
        self._zero = torch.zeros(size, dtype=torch.float64)  # float64 counts samples exactly up to 2**53
        self._sums = self._zero.clone()

    def update(self, logits: Tensor, batch: Batch) -> None:
        """Add a batch (`logits` [B, C]) without waiting for the device."""
        if self._sums.device != logits.device:
            self._sums = self._sums.to(logits.device)
        self._sums += self.added(logits, batch)

    def compute(self) -> dict[str, float]:
        """Values by name over all processes."""
        return self.values(all_reduce_sum(self._sums.cpu().clone()))

    def reset(self) -> None:
        """Forget what was added."""
        self._sums = self._zero.clone()

    def added(self, logits: Tensor, batch: Batch) -> Tensor:
        """What a batch adds to the sums: [size]."""
        raise TypeError(f"{type(self).__name__} defines no added(logits, batch)")

    def values(self, sums: Tensor) -> dict[str, float]:
        """The named values of the sums over all samples (CPU, float64)."""
        raise TypeError(f"{type(self).__name__} defines no values(sums)")


class Accuracy(Metric):
    """Percent of samples whose label is among the k largest logits: `accuracy`, `top5`, ... by `topk`."""

    def __init__(self, topk: Sequence[int] = (1,)) -> None:
        self.topk = tuple(topk)
        super().__init__(len(self.topk) + 1)

    def added(self, logits: Tensor, batch: Batch) -> Tensor:
        """Hits for each k, then the number of samples."""
        best = logits.topk(min(max(self.topk), logits.shape[1])).indices
        hits = (best == batch.labels[:, None]).double().sum(0).cumsum(0)
        count = hits.new_full((1,), len(logits))
        return torch.cat([*(hits[min(k, len(hits)) - 1, None] for k in self.topk), count])

    def values(self, sums: Tensor) -> dict[str, float]:
        """Percent by name."""
        return {
            "accuracy" if k == 1 else f"top{k}": float(100 * hits / sums[-1])
            for k, hits in zip(self.topk, sums, strict=False)
        }


class Mean(Metric):
    """Mean over samples of `function(logits, batch)` -> [B], for example a loss without reduction."""

    def __init__(self, name: str, function: Callable[[Tensor, Batch], Tensor]) -> None:
        self.name, self.function = name, function
        super().__init__(2)

    def added(self, logits: Tensor, batch: Batch) -> Tensor:
        """The sum, then the number of samples."""
        value = self.function(logits, batch).double()
        if value.shape != (len(batch.labels),):
            raise ConfigError(f"metric {self.name} gave shape {tuple(value.shape)} for {len(batch.labels)} samples")
        return torch.stack([value.sum(), value.new_full((), len(value))])

    def values(self, sums: Tensor) -> dict[str, float]:
        """The mean by its name."""
        return {self.name: float(sums[0] / sums[1])}


class PerClass(Metric):
    """Top-1 accuracy of each class; `compute` gives their mean, `accuracy` the vector."""

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self.accuracy: list[float] = []
        """Percent of each class after `compute`; NaN where a class has no sample."""
        super().__init__(2 * classes)

    def added(self, logits: Tensor, batch: Batch) -> Tensor:
        """Hits of each class, then samples of each class."""
        hits = (logits.argmax(1) == batch.labels).double()
        sums = logits.new_zeros(2 * self.classes, dtype=torch.float64)
        sums.index_add_(0, batch.labels, hits)
        return sums.index_add_(0, batch.labels + self.classes, torch.ones_like(hits))

    def values(self, sums: Tensor) -> dict[str, float]:
        """Percent, every class that occurs counted alike."""
        hits, count = sums.view(2, -1)
        accuracy = 100 * hits / count
        self.accuracy = accuracy.tolist()
        return {"mean_class_accuracy": float(accuracy[count > 0].mean())}


class IoU(Metric):
    """Of pixels with a class: `miou`, the mean intersection over union of all classes that occur, and `pixel_accuracy`.

    IoU_c = n_cc / (sum_p n_cp + sum_t n_tc - n_cc), n_tp being the pixels of class t that are taken for p. `compute`
    sets `iou`, the vector.
    """

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self.iou: list[float] = []
        """Percent of each class after `compute`; NaN where a class neither occurs nor is predicted."""
        super().__init__(classes**2 + 1)

    def added(self, logits: Tensor, batch: Batch) -> Tensor:
        """The confusion matrix of a batch, logits [B, C, H, W], row by row; then the pixels without a class."""
        cells = torch.where(batch.labels == IGNORE, self.classes**2, batch.labels * self.classes + logits.argmax(1))
        counts = logits.new_zeros(self.classes**2 + 1, dtype=torch.float64)
        return counts.index_add_(0, cells.flatten(), counts.new_ones(()).expand(cells.numel()))

    def values(self, sums: Tensor) -> dict[str, float]:
        """Percent by name."""
        confusion = sums[:-1].view(self.classes, self.classes)
        hits, either = confusion.diagonal(), confusion.sum(0) + confusion.sum(1) - confusion.diagonal()
        iou = 100 * hits / either
        self.iou = iou.tolist()
        return {"miou": float(iou[either > 0].mean()), "pixel_accuracy": float(100 * hits.sum() / confusion.sum())}
