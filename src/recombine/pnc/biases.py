"""A bias on all new logits: without images of the old classes nothing sets how large these are beside the old ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from recombine.engine.evaluate import Predictions
from recombine.pnc.metrics import percent

__all__ = ["BIASES", "best_bias", "bias_curve", "describe_bias"]

BIASES = [k / 2 for k in range(-20, 21)]
Curve = list[tuple[float, float]]
"""Accuracies on old and on new classes for each of BIASES."""


def bias_curve(old: Predictions, new: Predictions, width: int) -> Curve:
    """Accuracies where each bias is added to all new logits, those from `width` on."""

    def right(found: Predictions, bias: float) -> float:
        logits = torch.cat([found.logits[:, :width], found.logits[:, width:] + bias], 1)
        return percent(logits.argmax(1) == found.labels)

    return [(right(old, bias), right(new, bias)) for bias in BIASES]


def best_bias(curve: Sequence[tuple[float, float]]) -> int:
    """The place of the bias with the largest harmonic mean of both accuracies; of equal ones that nearest to 0."""
    means = [2 * old * new / max(old + new, 1e-9) for old, new in curve]
    return max(range(len(curve)), key=lambda k: (means[k], -abs(BIASES[k])))


def describe_bias(kept: Curve, test: Curve) -> tuple[dict[str, float], dict[str, list]]:
    """Metrics with the bias that is best on images kept for selection, and the whole curve on test images."""
    chosen = best_bias(kept)
    old, new = test[chosen]
    metrics = {"bias": BIASES[chosen], "accuracy_original_biased": old, "accuracy_cloned_biased": new}
    series = {"bias_original": [each for each, _ in test], "bias_cloned": [each for _, each in test]}
    return metrics | {"accuracy_average_biased": (old + new) / 2}, series
