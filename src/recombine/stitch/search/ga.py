"""The paper's genetic algorithm: no selection of parents, children compete with their parents."""

from __future__ import annotations

from collections.abc import Generator

import numpy as np

from recombine.stitch.search.acceptance import ObjectiveScale, accepts, assign, spread_weights
from recombine.stitch.search.base import Search
from recombine.stitch.search.population import mutate, two_point_crossover
from recombine.stitch.search.space import Individuals

__all__ = ["FamilialGa"]


class FamilialGa(Search):
    """Two-point crossover, mutation, and familial replacement."""

    def batches(self) -> Generator[np.ndarray, Individuals, None]:
        """The first population, then the children of all pairs; in an odd population one individual is not paired.

        Weights are assigned anew, in random order, after each generation.
        """
        population = self.select((yield self.start()))
        vectors = spread_weights(self.size, self.rng)
        scale = ObjectiveScale.of(population.objectives)
        weights = assign(vectors, scale(population.objectives))
        while True:
            pairs = self.rng.permutation(self.size)[: self.size // 2 * 2].reshape(-1, 2)
            first, second = population.genotypes[pairs].swapaxes(0, 1)
            crossed = np.concatenate(two_point_crossover(first, second, self.rng))
            children = yield mutate(crossed, self.space.alphabet, self.rng, self.genes)
            for i, parents in enumerate(np.tile(pairs, (2, 1))):
                self._compete(children.take(i), population, parents, weights, scale)
            scale = ObjectiveScale.of(population.objectives)
            weights = assign(self.rng.permutation(vectors), scale(population.objectives))

    def _compete(
        self,
        child: Individuals,
        population: Individuals,
        parents: np.ndarray,
        weights: np.ndarray,
        scale: ObjectiveScale,
    ) -> None:
        """The child replaces a parent it is not worse than, a random one of two.

        Where its sibling has replaced a parent before, it competes with the sibling by that parent's weights.
        Deviation: the authors' code takes the last such parent.
        """
        accepted = accepts(child, population.take(parents), weights[parents], scale, self.threshold)
        if accepted.any():
            population.put(self.rng.choice(parents[accepted]), child)
