"""Random search."""

from __future__ import annotations

from collections.abc import Generator

import numpy as np

from recombine.stitch.search.base import Search
from recombine.stitch.search.population import initial_population
from recombine.stitch.search.space import Individuals

__all__ = ["RandomSearch"]


class RandomSearch(Search):
    """Initial populations, one after the other."""

    def batches(self) -> Generator[np.ndarray, Individuals, None]:
        """Each of `population` individuals, 128 in the paper."""
        while True:
            yield initial_population(self.space, self.size, self.rng)
