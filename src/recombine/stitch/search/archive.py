"""The elitist archive: every solution that no other found so far beats."""

from __future__ import annotations

import numpy as np

from recombine.stitch.search.space import Individuals

__all__ = ["Archive"]


class Archive:
    """Mutually non-dominated individuals, as many as there are; of equal objectives the first stays (section 11)."""

    def __init__(self, length: int) -> None:
        """`length` of the genotypes."""
        genes = np.empty((0, length), np.int8)
        one = np.empty(0)
        self.members = Individuals(genes, np.empty((0, 2)), one, genes.astype(bool), one.astype(bool))
        """In the order in which they came."""

    def __len__(self) -> int:
        return len(self.members.accuracy)

    def add(self, found: Individuals, threshold: float = 0.0) -> np.ndarray:
        """Offer individuals one after the other; bool [n]: which were taken, if perhaps driven out by a later one.

        Members whose accuracy is below the threshold of steering go, and none comes in (section 11.3): with a
        threshold above what the networks reach, the archive is empty.
        """
        self._keep(self.members.accuracy >= threshold)
        return np.array([self._add(found.take([i]), threshold) for i in range(len(found.accuracy))], bool)

    def _add(self, one: Individuals, threshold: float) -> bool:
        known = self.members.objectives
        if one.accuracy[0] < threshold or (known <= one.objectives).all(1).any():
            return False
        self._keep((known < one.objectives).any(1))
        self.members = Individuals(*(np.concatenate(pair) for pair in zip(self.members, one, strict=True)))
        return True

    def _keep(self, which: np.ndarray) -> None:
        if not which.all():
            self.members = self.members.take(which)
