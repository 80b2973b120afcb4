"""Whether one solution may take the place of another: steering, then Tchebycheff scalarisation."""

from __future__ import annotations

from typing import NamedTuple, Self

import numpy as np
from scipy.spatial.distance import cdist

from recombine.stitch.search.space import Individuals

__all__ = ["ObjectiveScale", "accepts", "assign", "farthest_first", "spread_weights", "tchebycheff"]


class ObjectiveScale(NamedTuple):
    """Scales objectives to 0..1 over a population; to 0 where all of it is equal."""

    low: np.ndarray
    span: np.ndarray

    @classmethod
    def of(cls, objectives: np.ndarray) -> Self:
        """Least value and range of each objective of [n, 2]."""
        low, span = objectives.min(0), np.ptp(objectives, 0)
        return cls(low, np.where(span > 0, span, 1.0))

    def __call__(self, objectives: np.ndarray) -> np.ndarray:
        return (objectives - self.low) / self.span


def tchebycheff(scaled: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """s(x; w) = max_k w_k x_k of objectives [..., 2] in 0..1: [...]; less is better."""
    return (scaled * weights).max(-1)


def accepts(
    new: Individuals, old: Individuals, weights: np.ndarray, scale: ObjectiveScale, threshold: float | np.ndarray
) -> np.ndarray:
    """Whether `new` is not worse than `old`: by the accuracy missing to the threshold, on a tie by s.

    `weights` [..., 2] are those of `old`.
    """
    missing = [np.maximum(threshold - each.accuracy, 0) for each in (new, old)]
    scores = [tchebycheff(scale(each.objectives), weights) for each in (new, old)]
    return (missing[0] < missing[1]) | ((missing[0] == missing[1]) & (scores[0] <= scores[1]))


def farthest_first(points: np.ndarray, count: int, first: int) -> np.ndarray:
    """Positions int [count] of points [n, d], starting at `first`, each the farthest from all chosen before."""
    chosen = [first]
    distance = np.full(len(points), np.inf)
    for _ in range(count - 1):
        distance = np.minimum(distance, cdist(points, points[chosen[-1:]])[:, 0])
        distance[chosen[-1]] = -1  # not twice, even where points are equal
        chosen.append(int(distance.argmax()))
    return np.array(chosen)


def spread_weights(count: int, rng: np.random.Generator) -> np.ndarray:
    """Weight vectors [count, 2] with sum 1: (1, 0), then farthest-first among (0, 1) and 10 count - 2 random ones."""
    drawn = rng.random((10 * count, 2))
    drawn /= drawn.sum(1, keepdims=True)
    drawn[:2] = np.eye(2)
    return drawn[farthest_first(drawn, count, 0)]


def assign(vectors: np.ndarray, scaled: np.ndarray) -> np.ndarray:
    """Weights [n, 2] of individuals with objectives [n, 2] in 0..1: each vector, in order, goes to the best individual
    by it that has none yet.
    """
    weights = np.empty_like(vectors)
    free = np.arange(len(scaled))
    for vector in vectors:
        best = tchebycheff(scaled[free], vector).argmin()
        weights[free[best]] = vector
        free = np.delete(free, best)
    return weights
