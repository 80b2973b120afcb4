"""How the accuracies of a base and its tasks are summarised."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

__all__ = ["harmonic_mean", "mean", "pooled"]


def harmonic_mean(accuracies: Sequence[float]) -> float:
    """Harmonic mean of percentages; 0 if any is 0."""
    return len(accuracies) / sum(1 / a for a in accuracies) if all(accuracies) else 0.0


def mean(accuracies: Sequence[float]) -> float:
    """Mean of percentages, the base counted like every task."""
    return fmean(accuracies)


def pooled(accuracies: Sequence[float], sizes: Sequence[int]) -> float:
    """Accuracy on the concatenation of sets of these sizes."""
    return sum(n * a for n, a in zip(sizes, accuracies, strict=True)) / sum(sizes)
