"""Initial populations, crossover and mutation."""

from __future__ import annotations

import math

import numpy as np

from recombine.stitch.search.space import Space

__all__ = ["initial_population", "mutate", "two_point_crossover"]


def initial_population(space: Space, count: int, rng: np.random.Generator) -> np.ndarray:
    """Genotypes int8 [count, L] in which each gene is stratified over the population.

    A stitch is on in count - floor((1 - p) count) individuals, each output is chosen by a third, with a remainder going
    to the first ones; each gene is shuffled independently.
    """
    # A product like 0.07 * 100 lies an ulp above the integer that is meant.
    on = math.ceil(space.rate * count - 1e-9)
    position = np.arange(count)[:, None]
    values = np.where(space.alphabet == 2, position < on, position % space.alphabet)
    return rng.permuted(values.astype(np.int8), axis=0)


def two_point_crossover(
    first: np.ndarray, second: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Two children of each pair of parents [n, L], the genes between two different random cuts exchanged."""
    count, length = first.shape
    cuts = np.sort(rng.permuted(np.tile(np.arange(length + 1), (count, 1)), axis=1)[:, :2], axis=1)
    inside = (np.arange(length) >= cuts[:, :1]) & (np.arange(length) < cuts[:, 1:])
    return np.where(inside, second, first), np.where(inside, first, second)


def mutate(genotypes: np.ndarray, alphabet: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Genotypes int8 [n, L] in which each gene takes, with probability 1/L, one of its other values uniformly.

    Deviation: the authors' operator can switch a stitch on but never off.
    """
    step = rng.integers(1, alphabet, genotypes.shape)
    changed = rng.random(genotypes.shape) < 1 / len(alphabet)
    return ((genotypes + step * changed) % alphabet).astype(np.int8)
