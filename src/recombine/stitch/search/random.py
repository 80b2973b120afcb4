"""Random search."""

from __future__ import annotations

from collections.abc import Generator

import numpy as np

from recombine.stitch.search.base import Search
from recombine.stitch.search.population import initial
from recombine.stitch.search.space import Individuals

__all__ = ["RandomSearch"]


class RandomSearch(Search):
    """Initial populations, one after the other (section 11.7)."""

    def batches(self) -> Generator[np.ndarray, Individuals, None]:
        """Each as large as `population`, 128 in the paper."""
        while True:
            yield initial(self.space, self.size, self.rng)
