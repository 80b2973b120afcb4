"""Fronts of two minimised objectives, their hypervolume, and who dominates whom."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["dominates", "front", "hypervolume", "normalized_hypervolumes"]

MARGIN = 0.005
"""How far beyond the worst value the reference point lies, as a share of the range."""


def front(objectives: np.ndarray) -> np.ndarray:
    """Positions int [f] of the points of [n, 2] that no other dominates, by the first objective, the best first.

    Of equal points the first is kept.
    """
    order = np.lexsort((objectives[:, 1], objectives[:, 0]))
    second = objectives[order, 1]
    best_before = np.concatenate([[np.inf], np.minimum.accumulate(second)[:-1]])
    return order[second < best_before]


def hypervolume(objectives: np.ndarray, reference: np.ndarray) -> float:
    """Area that points [n, 2] dominate up to a reference point [2]; points beyond it add nothing."""
    inside = objectives[(objectives < reference).all(1)]
    first, second = inside[front(inside)].T
    before = np.concatenate([[reference[1]], second[:-1]])
    return float(((reference[0] - first) * (before - second)).sum())


def normalized_hypervolumes(fronts: Sequence[np.ndarray], references: np.ndarray) -> np.ndarray:
    """Hypervolumes float64 [len(fronts)] of fronts [n_i, 2] that are to be compared, at most about 1.

    Best, worst and range r of each axis are those of all points of all fronts and of the reference networks [m, 2];
    the reference point is the worst moved away by 0.5 % of r, and areas are divided by 1.01 r of both axes (section 13
    of stitching). Deviation: its authors' code moves the cost axis towards the best.
    """
    everything = np.concatenate([references, *fronts])
    span = np.ptp(everything, axis=0)
    span = np.where(span > 0, span, 1.0)
    worst = everything.max(0) + MARGIN * span
    return np.array([hypervolume(points, worst) for points in fronts]) / np.prod((1 + 2 * MARGIN) * span)


def dominates(points: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Whether points [n, 2] are nowhere worse and somewhere better than others [m, 2]: bool [n, m]."""
    points, others = points[:, None], others[None]
    return (points <= others).all(-1) & (points < others).any(-1)
