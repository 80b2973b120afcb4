"""The search space, evaluations of its genotypes, and the budget of requests."""

from __future__ import annotations

from typing import NamedTuple, Protocol, Self

import numpy as np

__all__ = ["ENSEMBLE", "Budget", "Evaluate", "Evaluations", "Individuals", "Space", "phenotypes", "references"]

A, B, ENSEMBLE = range(3)
"""Values of the output gene: one parent's logits, or the mean of both."""


class Space(NamedTuple):
    """Genotypes [s_a1, s_b1, ..., s_am, s_bm, o]."""

    alphabet: np.ndarray
    """int [L], number of values of each gene: 2m twos and one three."""
    expected_stitches: float = 2.0
    """Stitches that are on in an individual of a stratified sample, on average."""
    coarse: np.ndarray | None = None
    """bool [L]: the genes of pairs of block ends, and the output. None: there is no such difference."""

    @property
    def length(self) -> int:
        """L = 2m + 1."""
        return len(self.alphabet)


class Evaluations(NamedTuple):
    """Results of n genotypes, in their order."""

    objectives: np.ndarray
    """float64 [n, 2], both minimised: minus the score or the loss, then multiply-adds. Not finite where one failed."""
    accuracy: np.ndarray
    """The score of the task, float64 [n] in 0..1, which steering is about: accuracy or mIoU."""
    active: np.ndarray
    """bool [n, L]: the genes that have an effect in that genotype; the last always has."""
    measured: np.ndarray
    """bool [n]: the others were dropped early, their objectives are estimates and they enter no archive."""


class Evaluate(Protocol):
    """Evaluates genotypes int8 [n, L], duplicates included; known networks may come from a memo."""

    def __call__(self, genotypes: np.ndarray) -> Evaluations: ...


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
    archived: np.ndarray
    """bool [n]: whether the archive accepted it when it was evaluated."""

    def take(self, index: int | np.ndarray) -> Self:
        """The individual at one position, or those at several."""
        return type(self)(*(array[index] for array in self))

    def put(self, index: int | np.ndarray, others: Individuals) -> None:
        """Replace the individual at one position, or those at several, in place."""
        for array, values in zip(self, others, strict=True):
            array[index] = values


def phenotypes(genotypes: np.ndarray, active: np.ndarray) -> np.ndarray:
    """Genotypes with inactive genes 0, int8 [..., L]: equal rows are the same network."""
    return np.where(active, genotypes, 0).astype(np.int8)


def references(length: int) -> np.ndarray:
    """Genotypes int8 [3, length] without stitches: parent A, parent B, and their ensemble."""
    genotypes = np.zeros((3, length), np.int8)
    genotypes[:, -1] = A, B, ENSEMBLE
    return genotypes


class Budget:
    """Requests that a search may make, and those it has made.

    `unit` is what the total counts: `requests`, all of them, as in the paper; or `unique`, the phenotypes that this
    search requested for the first time. Both follow from the results alone, not from whether they came from a memo, so
    that a search continued from a memo takes the same course. With `unique` a search also ends when as many requests as
    the whole budget brought nothing new.
    """

    def __init__(self, total: int, unit: str = "requests") -> None:
        self.total, self.unit = total, unit
        self.requests = 0
        self.idle = 0
        """Requests since the last one of a new phenotype."""
        self._seen: set[bytes] = set()

    @property
    def unique(self) -> int:
        """Different phenotypes requested so far."""
        return len(self._seen)

    @property
    def remaining(self) -> int:
        """Requests that are certain to be within the budget."""
        return self.total - (self.requests if self.unit == "requests" else max(self.unique, self.idle))

    def spend(self, genotypes: np.ndarray, active: np.ndarray) -> None:
        """Count requests: genotypes int8 [n, L] and which of their genes are active, bool [n, L]."""
        for key in phenotypes(genotypes, active):
            known = len(self._seen)
            self._seen.add(key.tobytes())
            self.idle = self.idle + 1 if len(self._seen) == known else 0
        self.requests += len(genotypes)
