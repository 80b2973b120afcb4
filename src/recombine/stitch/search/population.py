"""Single stitches, initial populations, crossover and mutation."""

from __future__ import annotations

import math

import numpy as np

from recombine.stitch.pareto import front
from recombine.stitch.search.space import ENSEMBLE, A, B, Space

__all__ = ["fittest", "initial_population", "mutate", "single_stitches", "two_point_crossover"]


def single_stitches(length: int) -> np.ndarray:
    """Genotypes int8 [4 m, length = 2 m + 1], m of each family in the order of the pairs.

    Ensembles that share a prefix of A (B's switch on), ensembles that share one of B (A's switch on), A into B (B's
    output, B's switch on), and B into A.
    """
    pairs = (length - 1) // 2
    genotypes = np.zeros((4, pairs, length), np.int8)
    genotypes[..., -1] = np.array([ENSEMBLE, ENSEMBLE, B, A])[:, None]
    pair = np.arange(pairs)
    for family, switch in enumerate((B, A, B, A)):
        genotypes[family, pair, 2 * pair + switch] = 1
    return genotypes.reshape(-1, length)


def initial_population(
    space: Space, count: int, rng: np.random.Generator, genes: np.ndarray | None = None
) -> np.ndarray:
    """Genotypes int8 [count, L] in which each gene is stratified over the population; `genes` bool [L] may vary.

    A stitch is on in count - floor((1 - p) count) individuals, with p such that `expected_stitches` are on in one, but
    at most half, which few stitches would exceed. Each output is chosen by a third, with a remainder going to the first
    ones; each gene is shuffled independently.
    """
    stitches = np.ones(space.length - 1, bool) if genes is None else genes[:-1]
    rate = min(space.expected_stitches / max(1, stitches.sum()), 0.5)
    # A product like 0.07 * 100 lies an ulp above the integer that is meant.
    on = math.ceil(rate * count - 1e-9) * np.append(stitches, False)
    position = np.arange(count)[:, None]
    values = np.where(space.alphabet == 2, position < on, position % space.alphabet)
    return rng.permuted(values.astype(np.int8), axis=0)


def fittest(objectives: np.ndarray, count: int) -> np.ndarray:
    """Positions int [count] of the first ones in the order of non-dominated fronts, for [n, 2], both minimised."""
    left, chosen = np.arange(len(objectives)), np.empty(0, int)
    while len(chosen) < min(count, len(objectives)):
        best = front(objectives[left])
        chosen, left = np.append(chosen, left[best]), np.delete(left, best)
    return chosen[:count]


def two_point_crossover(
    first: np.ndarray, second: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Two children of each pair of parents [n, L], the genes between two different random cuts exchanged."""
    count, length = first.shape
    cuts = np.sort(rng.permuted(np.tile(np.arange(length + 1), (count, 1)), axis=1)[:, :2], axis=1)
    inside = (np.arange(length) >= cuts[:, :1]) & (np.arange(length) < cuts[:, 1:])
    return np.where(inside, second, first), np.where(inside, first, second)


def mutate(
    genotypes: np.ndarray, alphabet: np.ndarray, rng: np.random.Generator, genes: np.ndarray | None = None
) -> np.ndarray:
    """Genotypes int8 [n, L] in which each gene takes, with probability 1/L, one of its other values uniformly.

    Of `genes` (bool [L]) if they are given, with their number in place of L.
    Deviation: the authors' operator can switch a stitch on but never off.
    """
    open_ = np.ones(len(alphabet), bool) if genes is None else genes
    step = rng.integers(1, alphabet, genotypes.shape)
    changed = (rng.random(genotypes.shape) < 1 / open_.sum()) & open_
    return ((genotypes + step * changed) % alphabet).astype(np.int8)
