"""Pareto fronts of two minimised objectives, their hypervolume, and dominance."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pymoo.indicators.hv import HV

__all__ = ["dominates", "front", "hypervolume", "normalized_hypervolumes"]

MARGIN = 0.005
"""Distance of the reference point from the worst value, as a fraction of the range."""


def front(objectives: np.ndarray) -> np.ndarray:
    """Positions int [f] of the points of [n, 2] that no other dominates, by the first objective, the best first.

    Of equal points the first is kept. Sorting takes O(n log n); pymoo's non-dominated sorting compares all pairs, which
    200,000 requests are too many for.
    """
    order = np.lexsort((objectives[:, 1], objectives[:, 0]))
    second = objectives[order, 1]
    best_before = np.concatenate([[np.inf], np.minimum.accumulate(second)[:-1]])
    return order[second < best_before]


def hypervolume(objectives: np.ndarray, reference: np.ndarray) -> float:
    """Area that points [n, 2] dominate up to a reference point [2]; points beyond it add nothing."""
    return float(HV(ref_point=reference)(objectives)) if len(objectives) else 0.0


def normalized_hypervolumes(fronts: Sequence[np.ndarray], references: np.ndarray) -> np.ndarray:
    """Hypervolumes float64 [len(fronts)] of fronts [n_i, 2] on common axes, at most about 1.

    Best, worst and range r of each axis are those of all points of all fronts and of the reference networks [m, 2];
    the reference point is the worst moved away by 0.5 % of r, and areas are divided by 1.01 r of both axes.
    Deviation: the authors' code moves the cost axis towards the best.
    """
    everything = np.concatenate([references, *fronts])
    span = np.ptp(everything, axis=0)
    span = np.where(span > 0, span, 1.0)
    worst = everything.max(0) + MARGIN * span
    return np.array([hypervolume(points, worst) for points in fronts]) / np.prod((1 + 2 * MARGIN) * span)


def dominates(points: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Whether points [n, 2] are nowhere worse and somewhere better than others [m, 2]: bool [n, m]."""
    points, others = points[:, None], others[None]
    return np.all(points <= others, axis=-1) & np.any(points < others, axis=-1)
