"""Every network with a single stitch, and the parents it is compared with."""

from __future__ import annotations

from collections.abc import Generator

import numpy as np

from recombine.stitch.search.base import Search
from recombine.stitch.search.space import Budget, Individuals, Space

__all__ = ["SingleStitchSweep", "references", "single_stitches"]

A, B, ENSEMBLE = range(3)


def references(length: int) -> np.ndarray:
    """Genotypes int8 [3, length] without stitches: parent A, parent B, and their ensemble."""
    genotypes = np.zeros((3, length), np.int8)
    genotypes[:, -1] = A, B, ENSEMBLE
    return genotypes


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


class SingleStitchSweep(Search):
    """References and single stitches, in one batch; nothing is random, so the seed has no effect."""

    def __init__(self, space: Space, budget: Budget, *, name: str = "single_stitch_sweep", seed: int = 0) -> None:
        super().__init__(space, budget, name=name, seed=seed, steering=0.0)

    def batches(self) -> Generator[np.ndarray, Individuals, None]:
        """3 + 4 m genotypes."""
        yield np.concatenate([references(self.space.length), single_stitches(self.space.length)])
