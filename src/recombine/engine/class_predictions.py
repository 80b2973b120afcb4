"""What networks say about a split, without their logits: small enough to keep of hundreds of networks at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from recombine.core.types import Loader
from recombine.engine import evaluate
from recombine.engine.evaluate import cache_path, run_over

__all__ = ["ClassPredictions", "class_path", "compute_once", "predict_classes", "summarize"]

FIELDS = ("classes", "confidence", "label_probability", "labels", "index")


class ClassPredictions(NamedTuple):
    """Predicted classes with their probabilities, on the CPU, in the order of the samples' positions in the split."""

    classes: Tensor
    """int32 [N], the predicted class."""
    confidence: Tensor
    """float32 [N], its softmax probability."""
    label_probability: Tensor
    """float32 [N], that of the label; nan for samples without one."""
    labels: Tensor
    """int64 [N]; -1 for none."""
    index: Tensor  # type: ignore[assignment]
    """int64 [N], increasing positions in the split."""
    logits: Tensor | None = None
    """float16 [N, C], where they were asked for."""

    @classmethod
    def from_logits(cls, logits: Tensor, labels: Tensor, *, keep_logits: bool = False) -> ClassPredictions:
        """Those of logits [N, C] and labels [N] in the order of the split."""
        index = torch.arange(len(labels))
        return cls(*summarize(logits.float(), labels), labels, index, logits.half() if keep_logits else None)

    @property
    def right(self) -> NDArray[np.bool_]:
        """Which predictions are right, [N]."""
        return (self.classes == self.labels).numpy()


def summarize(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of logits [B, C]: the predicted class, its probability and that of the label (nan where it is negative), [B]."""
    probabilities = logits.softmax(1)
    label = probabilities.gather(1, labels.clamp(min=0)[:, None])[:, 0]
    return logits.argmax(1).int(), probabilities.amax(1), torch.where(labels < 0, torch.nan, label)


def predict_classes(
    model: nn.Module,
    loader: Loader,
    cache: Path | None = None,
    *,
    precision: str = "auto",
    keep_logits: bool = False,
    stopped: Callable[[], object] = lambda: None,
) -> ClassPredictions:
    """Predictions of `model` for every sample; with `cache` computed once, also where several processes ask at a time.

    `stopped` is called while another process computes them, see `recombine.core.locks.exclusive`.
    """

    def read(logits: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        return (*summarize(logits, labels), *([logits.half()] if keep_logits else []))

    def compute() -> ClassPredictions:
        index, labels, classes, confidence, label_probability, *logits = run_over(model, loader, read, precision)
        return ClassPredictions(classes, confidence, label_probability, labels, index, *logits)

    path = class_path(cache, model, loader, precision)
    return compute_once(path, compute, keep_logits=keep_logits, stopped=stopped)


def class_path(cache: Path | None, model: nn.Module, loader: Loader, precision: str) -> Path | None:
    """The file of `predict_classes`."""
    path = cache_path(cache, model, loader, precision)
    return path.with_suffix(".classes.safetensors") if path is not None else None


def compute_once(
    path: Path | None,
    compute: Callable[[], ClassPredictions],
    *,
    keep_logits: bool = False,
    stopped: Callable[[], object] = lambda: None,
) -> ClassPredictions:
    """What the file `path` holds, or else what `compute` gives, kept there: by one process, while others wait."""
    names = (*FIELDS, *(["logits"] if keep_logits else []))

    def tensors() -> dict[str, Tensor]:
        return {name: value for name, value in compute()._asdict().items() if value is not None}

    return ClassPredictions(**evaluate.compute_once(path, names, tensors, stopped=stopped))
