"""What is said of offspring beside their objectives: calibration, and whom of their parents they dominate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_calibration_error

from recombine.engine.evaluate import Predictions
from recombine.stitch.pareto import dominates, hypervolume

__all__ = ["BINS", "comparison", "network_measures", "temperature"]

BINS = 15
"""Of the expected calibration error."""
NEAR = 0.3
"""Points of accuracy by which a cheaper ensemble may miss the plain one."""


def temperature(logits: Tensor, labels: Tensor) -> float:
    """What logits [N, C] are to be divided by for the least cross entropy (temperature scaling): 0.05 to 20."""
    found = minimize_scalar(
        lambda log_t: float(F.cross_entropy(logits.double() / np.exp(log_t), labels)),
        bounds=(np.log(0.05), np.log(20)),
        method="bounded",
    )
    return float(np.exp(found.x))


def network_measures(search: Predictions, test: Predictions) -> dict[str, float]:
    """Of one network: accuracy (percent), loss and calibration error (percent) on both sets.

    `*_scaled` after temperature scaling; the temperature comes from the search images.
    """
    warm = temperature(search.logits, search.labels)
    facts = {"temperature": warm}
    for purpose, said in (("search", search), ("test", test)):
        facts[f"{purpose}_accuracy"] = 100 * float((said.logits.argmax(1) == said.labels).double().mean())
        for name, logits in (("", said.logits), ("_scaled", said.logits / warm)):
            facts[f"{purpose}_loss{name}"] = float(F.cross_entropy(logits.double(), said.labels))
            error = multiclass_calibration_error(logits.softmax(1), said.labels, logits.shape[1], n_bins=BINS)
            facts[f"{purpose}_ece{name}"] = 100 * float(error)
    return facts


def comparison(front: Mapping[str, Sequence[float]], references: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """A front against both parents and their ensemble, on the images of the search and on those of the test.

    Both hold lists by name: `search_accuracy` and `test_accuracy` in percent, `cost` in multiply-adds; `references` in
    the order A, B, ensemble. Hypervolumes are percent of the box from (accuracy of the worst reference, cost of the
    ensemble) to (100 %, 0).
    """
    facts: dict[str, float] = {"front": float(len(front["cost"]))}
    most = references["cost"][-1]
    for purpose in ("search", "test"):
        points, three = (
            np.stack([-np.asarray(side[f"{purpose}_accuracy"]) / 100, np.asarray(side["cost"]) / most], 1)
            for side in (front, references)
        )
        who = dominates(points, three)
        for name, column in zip(("a", "b", "ensemble"), who.T, strict=True):
            facts[f"{purpose}_dominate_{name}"] = float(column.sum())
        facts[f"{purpose}_dominate_both_parents"] = float(who[:, :2].all(1).sum())
        corner = three.max(0)
        for name, side in (("", points), ("_references", three)):
            facts[f"{purpose}_hypervolume{name}"] = 100 * hypervolume(side, corner) / (1 + corner[0])
        facts[f"{purpose}_accuracy_best"] = float(max(front[f"{purpose}_accuracy"]))
    best = int(np.argmax(front["search_accuracy"]))
    facts["chosen_accuracy"] = float(front["test_accuracy"][best])
    facts["chosen_gap"] = float(front["search_accuracy"][best] - front["test_accuracy"][best])
    facts["chosen_cost"] = 100 * float(front["cost"][best]) / most
    near = [
        k
        for k, output in enumerate(front["output"])
        if output == 2 and front["search_accuracy"][k] >= references["search_accuracy"][-1] - NEAR
    ]
    if near:
        cheapest = min(near, key=lambda k: front["cost"][k])
        facts["cheap_ensemble_cost"] = 100 * front["cost"][cheapest] / most
        facts["cheap_ensemble_accuracy"] = float(front["test_accuracy"][cheapest])
    return facts
