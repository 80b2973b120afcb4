"""Random search."""

from __future__ import annotations

from collections.abc import Generator

import numpy as np

from recombine.stitch.search.base import Search
from recombine.stitch.search.population import initial_population
from recombine.stitch.search.space import Budget, Individuals, Space, references

__all__ = ["RandomSearch"]


class RandomSearch(Search):
    """Both parents, their ensemble, and stratified samples. There is no steering, as in the paper."""

    def __init__(
        self, space: Space, budget: Budget, *, name: str = "random", seed: int = 0, population: int = 128
    ) -> None:
        super().__init__(space, budget, name=name, seed=seed, population=population, steering=0.0)

    def batches(self) -> Generator[np.ndarray, Individuals, None]:
        """Each of `population` individuals, 128 in the paper."""
        yield references(self.space.length)
        while True:
            yield initial_population(self.space, self.size, self.rng)
