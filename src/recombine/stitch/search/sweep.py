"""Every network with a single stitch, and the parents it is compared with."""

from __future__ import annotations

from collections.abc import Generator

import numpy as np

from recombine.stitch.search.base import Search
from recombine.stitch.search.population import single_stitches
from recombine.stitch.search.space import Budget, Individuals, Space, references

__all__ = ["SingleStitchSweep"]


class SingleStitchSweep(Search):
    """References and single stitches, in one batch; nothing is random, so the seed has no effect."""

    def __init__(self, space: Space, budget: Budget, *, name: str = "single_stitch_sweep", seed: int = 0) -> None:
        super().__init__(space, budget, name=name, seed=seed, steering=0.0)

    def batches(self) -> Generator[np.ndarray, Individuals, None]:
        """3 + 4 m genotypes."""
        yield np.concatenate([references(self.space.length), single_stitches(self.space.length)])
