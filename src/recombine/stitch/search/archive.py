"""The elitist archive: all non-dominated solutions found so far."""

from __future__ import annotations

import numpy as np

from recombine.stitch.search.space import Individuals, phenotypes

__all__ = ["Archive"]


class Archive:
    """Mutually non-dominated individuals, without a limit; of equal objectives the first stays."""

    def __init__(self, length: int) -> None:
        """`length` of the genotypes."""
        genes = np.empty((0, length), np.int8)
        empty = np.empty(0)
        self.members = Individuals(genes, np.empty((0, 2)), empty, genes.astype(bool), empty.astype(bool))
        """In the order in which they were accepted."""

    def __len__(self) -> int:
        return len(self.members.accuracy)

    def add(self, found: Individuals, threshold: float = 0.0) -> np.ndarray:
        """Offer individuals one after the other; bool [n]: which were accepted, even if a later one dominates them.

        Members whose accuracy is below the threshold of steering are removed, and none is accepted. Both parents and
        their ensemble are not steered: they leave the archive only for what dominates them.
        """
        self._filter((self.members.accuracy >= threshold) | ~stitched(self.members))
        return np.array([self._add(found.take(np.array([i])), threshold) for i in range(len(found.accuracy))], bool)

    def _add(self, one: Individuals, threshold: float) -> bool:
        known = self.members.objectives
        if (one.accuracy < threshold and stitched(one)) or (known <= one.objectives).all(1).any():
            return False
        self._filter(np.any(known < one.objectives, axis=1))
        self.members = Individuals(*(np.concatenate(pair) for pair in zip(self.members, one, strict=True)))
        return True

    def _filter(self, mask: np.ndarray) -> None:
        if not mask.all():
            self.members = self.members.take(mask)


def stitched(found: Individuals) -> np.ndarray:
    """bool [n]: individuals with an active stitch; those without one are the parents and their ensemble."""
    return np.any(phenotypes(found.genotypes, found.active)[:, :-1], axis=1)
