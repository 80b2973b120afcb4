"""What is searched, what an evaluation says about it, and how many of them there may be."""

from __future__ import annotations

from typing import NamedTuple, Protocol, Self

import numpy as np

__all__ = ["Budget", "Evaluate", "Evaluated", "Individuals", "Space", "phenotypes"]


class Space(NamedTuple):
    """Genotypes [s_a1, s_b1, ..., s_am, s_bm, o] (section 8.1)."""

    alphabet: np.ndarray
    """int [L], how many values each gene has: 2m twos and one three."""
    expected_stitches: float = 6.2
    """How many stitches an individual of an initial population has switched on, on average."""

    @property
    def length(self) -> int:
        """L = 2m + 1."""
        return len(self.alphabet)

    @property
    def rate(self) -> float:
        """p of section 11.1, the share of ones in a stitch's gene; at most half, which few stitches would exceed."""
        return min(self.expected_stitches / (self.length - 1), 0.5)


class Evaluated(NamedTuple):
    """What is known of n genotypes, in their order."""

    objectives: np.ndarray
    """float64 [n, 2], both minimised: minus accuracy or loss, then multiply-adds. Not finite where one failed."""
    accuracy: np.ndarray
    """float64 [n] in 0..1, which steering looks at."""
    active: np.ndarray
    """bool [n, L]: which genes matter in that genotype; the last always does."""


class Evaluate(Protocol):
    """Measures genotypes int8 [n, L], duplicates included; what it knows already it may answer from a memo."""

    def __call__(self, genotypes: np.ndarray) -> Evaluated: ...


class Individuals(NamedTuple):
    """Evaluated genotypes: arrays with one row an individual, or one individual without that axis."""

    genotypes: np.ndarray
    """int8 [n, L]."""
    objectives: np.ndarray
    """float64 [n, 2], both minimised, finite."""
    accuracy: np.ndarray
    """float64 [n]."""
    active: np.ndarray
    """bool [n, L]."""
    entered: np.ndarray
    """bool [n]: the archive took it when it was evaluated."""

    def take(self, index: int | np.ndarray) -> Self:
        """The individual at one position, or those at several."""
        return type(self)(*(array[index] for array in self))

    def put(self, index: int | np.ndarray, others: Individuals) -> None:
        """Replace the individual at one position, or those at several, in place."""
        for array, values in zip(self, others, strict=True):
            array[index] = values


def phenotypes(genotypes: np.ndarray, active: np.ndarray) -> np.ndarray:
    """Genotypes with inactive genes 0, int8 [n, L]: equal rows are the same network (section 8.2)."""
    return np.where(active, genotypes, 0).astype(np.int8)


class Budget:
    """How many requests a search may make, and how many it has made.

    `unit` is what the total counts: `requests`, all of them, as in the paper; or `unique`, the phenotypes that this
    search asked for the first time. Both are told from the answers alone, never from whether something was measured or
    remembered, so that a search continued from a memo takes the same course. With `unique` a search also ends when as
    many requests as the whole budget brought nothing new.
    """

    def __init__(self, total: int, unit: str = "requests") -> None:
        self.total, self.unit = total, unit
        self.requests = 0
        self._seen: set[bytes] = set()
        self._idle = 0

    @property
    def unique(self) -> int:
        """Phenotypes asked for so far."""
        return len(self._seen)

    @property
    def left(self) -> int:
        """How many more requests are certain to be within the budget."""
        return self.total - (self.requests if self.unit == "requests" else max(self.unique, self._idle))

    def spend(self, genotypes: np.ndarray, active: np.ndarray) -> None:
        """Count answered requests: genotypes int8 [n, L] and which of their genes are active, bool [n, L]."""
        for key in phenotypes(genotypes, active):
            known = len(self._seen)
            self._seen.add(key.tobytes())
            self._idle = self._idle + 1 if len(self._seen) == known else 0
        self.requests += len(genotypes)
