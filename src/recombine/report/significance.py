"""Which of several sets of repetitions are not significantly worse than the best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["holm", "not_worse"]


def holm(p_values: Sequence[float]) -> np.ndarray:
    """p-values [n] corrected for n tests by Holm's method, in their order."""
    order = np.argsort(p_values)
    corrected = np.maximum.accumulate(np.sort(p_values) * np.arange(len(order), 0, -1))
    return np.minimum(corrected[np.argsort(order)], 1)


def not_worse(samples: Mapping[Any, Sequence[float]], alpha: float = 0.05) -> set[Any]:
    """The name with the best (largest) median, and all that are not significantly below it.

    One-sided Mann-Whitney U of each against the best, with Holm's correction (as Guijt et al. do). Nothing where
    no name has been measured twice.
    """
    if not samples or max(map(len, samples.values())) < 2:
        return set()
    from scipy.stats import mannwhitneyu  # 1.5 s, which no help or mistake should take

    best = max(samples, key=lambda name: np.median(samples[name]))
    others = [name for name in samples if name != best]
    p_values = [
        1.0
        if np.ptp([*samples[name], *samples[best]]) == 0
        else float(mannwhitneyu(samples[name], samples[best], alternative="less").pvalue)
        for name in others
    ]
    return {best} | {name for name, p in zip(others, holm(p_values), strict=True) if p > alpha}
