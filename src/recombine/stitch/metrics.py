"""Metrics of offspring beside their objectives: calibration, and which of their parents they dominate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_calibration_error

from recombine.engine.evaluate import Predictions
from recombine.stitch.pareto import dominates, hypervolume

__all__ = ["BINS", "compare_to_references", "network_metrics", "temperature"]

BINS = 15
"""Of the expected calibration error."""
MAX_LOSS = 0.3
"""Points of accuracy that a cheaper ensemble may lose against the ensemble of both parents."""


def temperature(logits: Tensor, labels: Tensor) -> float:
    """The divisor of logits [N, C] with the least cross entropy (temperature scaling), 0.05 to 20."""
    found = minimize_scalar(
        lambda log_t: float(F.cross_entropy(logits.double() / np.exp(log_t), labels)),
        bounds=(np.log(0.05), np.log(20)),
        method="bounded",
    )
    return float(np.exp(found.x))


def network_metrics(search: Predictions, test: Predictions) -> dict[str, float]:
    """Of one network: accuracy (percent), loss and calibration error (percent) on both sets.

    `*_scaled` after temperature scaling; the temperature comes from the search images.
    """
    scale = temperature(search.logits, search.labels)
    metrics = {"temperature": scale}
    for purpose, found in (("search", search), ("test", test)):
        metrics[f"{purpose}_accuracy"] = 100 * float((found.logits.argmax(1) == found.labels).double().mean())
        for name, logits in (("", found.logits), ("_scaled", found.logits / scale)):
            metrics[f"{purpose}_loss{name}"] = float(F.cross_entropy(logits.double(), found.labels))
            error = multiclass_calibration_error(logits.softmax(1), found.labels, logits.shape[1], n_bins=BINS)
            metrics[f"{purpose}_ece{name}"] = 100 * float(error)
    return metrics


def compare_to_references(
    front: Mapping[str, Sequence[float]], references: Mapping[str, Sequence[float]]
) -> dict[str, float]:
    """A front compared to both parents and their ensemble, on the search images and on the test images.

    Both hold lists by name: `search_accuracy` and `test_accuracy` in percent, `cost` in multiply-adds; `references` in
    the order A, B, ensemble. Hypervolumes are percent of the box from (accuracy of the worst reference, cost of the
    ensemble) to (100 %, 0).
    """
    metrics: dict[str, float] = {"front": float(len(front["cost"]))}
    ensemble_cost = references["cost"][-1]
    for purpose in ("search", "test"):
        points, parents = (
            np.stack([-np.asarray(side[f"{purpose}_accuracy"]) / 100, np.asarray(side["cost"]) / ensemble_cost], 1)
            for side in (front, references)
        )
        dominated = dominates(points, parents)
        for name, column in zip(("a", "b", "ensemble"), dominated.T, strict=True):
            metrics[f"{purpose}_dominate_{name}"] = float(column.sum())
        metrics[f"{purpose}_dominate_both_parents"] = float(dominated[:, :2].all(1).sum())
        corner = parents.max(0)
        for name, side in (("", points), ("_references", parents)):
            metrics[f"{purpose}_hypervolume{name}"] = 100 * hypervolume(side, corner) / (1 + corner[0])
        metrics[f"{purpose}_accuracy_best"] = float(max(front[f"{purpose}_accuracy"]))
    best = int(np.argmax(front["search_accuracy"]))
    metrics["chosen_accuracy"] = float(front["test_accuracy"][best])
    metrics["chosen_gap"] = float(front["search_accuracy"][best] - front["test_accuracy"][best])
    metrics["chosen_cost"] = 100 * float(front["cost"][best]) / ensemble_cost
    ensembles = [
        k
        for k, output in enumerate(front["output"])
        if output == 2 and front["search_accuracy"][k] >= references["search_accuracy"][-1] - MAX_LOSS
    ]
    if ensembles:
        cheapest = min(ensembles, key=lambda k: front["cost"][k])
        metrics["cheap_ensemble_cost"] = 100 * front["cost"][cheapest] / ensemble_cost
        metrics["cheap_ensemble_accuracy"] = float(front["test_accuracy"][cheapest])
    return metrics
