"""Metrics of offspring beside their objectives: score, loss and calibration."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_calibration_error

from recombine.stitch.tasks import Task

__all__ = ["BINS", "NetworkAnswers", "network_metrics", "temperature"]

BINS = 15
"""Of the expected calibration error."""


class NetworkAnswers(NamedTuple):
    """What a network answers to the images of a loader, on the CPU, in the order of their positions."""

    logits: Tensor
    """float32 [n, C], of which calibration is measured: of all images, or of some pixels of each."""
    labels: Tensor
    """int64 [n]."""
    counts: Tensor
    """float32 [N, K], see `Task`."""


def temperature(logits: Tensor, labels: Tensor) -> float:
    """The divisor of logits [N, C] with the least cross entropy (temperature scaling), 0.05 to 20."""
    found = minimize_scalar(
        lambda log_t: float(F.cross_entropy(logits.double() / np.exp(log_t), labels)),
        bounds=(np.log(0.05), np.log(20)),
        method="bounded",
    )
    return float(np.exp(found.x))


def network_metrics(search: NetworkAnswers, test: NetworkAnswers, task: Task) -> dict[str, float]:
    """Of one network: score (percent), loss and calibration error (percent) on both sets.

    `*_scaled` after temperature scaling; the temperature comes from the search images.
    """
    scale = temperature(search.logits, search.labels)
    metrics = {"temperature": scale}
    for purpose, found in (("search", search), ("test", test)):
        sums = found.counts.double().sum(0)
        metrics[f"{purpose}_{task.score}"] = 100 * float(task.value(sums, len(found.counts)))
        metrics |= {f"{purpose}_{key}": value for key, value in task.details(sums).items()}
        for name, logits in (("", found.logits), ("_scaled", found.logits / scale)):
            metrics[f"{purpose}_loss{name}"] = float(F.cross_entropy(logits.double(), found.labels))
            error = multiclass_calibration_error(logits.softmax(1), found.labels, logits.shape[1], n_bins=BINS)
            metrics[f"{purpose}_ece{name}"] = 100 * float(error)
    return metrics
