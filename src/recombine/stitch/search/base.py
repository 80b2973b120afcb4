"""What all search algorithms share: batches of requests within the budget, the archive, and steering."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator
from typing import Any

import numpy as np

from recombine.core.errors import ConfigError, RecombineError
from recombine.stitch.search.archive import Archive
from recombine.stitch.search.population import fittest, initial_population, single_stitches
from recombine.stitch.search.space import Budget, Evaluate, Individuals, Space, references

__all__ = ["Search", "advance"]

COARSE = 0.5
"""Largest part of the budget in which only the genes of block ends vary; afterwards those inside blocks do too."""
SINGLE_STITCHES = 0.5
"""Part of the budget that networks with one stitch may take at the start."""


class Search(ABC):
    """A search algorithm: `batches` yields the genotypes to evaluate next, `run` evaluates and archives them.

    Deviation: the authors search asynchronously, with as many evaluations in flight as there are individuals; here a
    batch is evaluated as a whole, which makes runs repeatable.
    """

    def __init__(
        self,
        space: Space,
        budget: Budget,
        *,
        name: str = "search",
        seed: int = 0,
        population: int = 128,
        steering: float = 0.5,
    ) -> None:
        """`name` is the search's in rows; `steering` the accuracy required by the time all of the budget is spent."""
        if space.length < 3:
            raise ConfigError("no layers of the parents match, so there is nothing to search; take other parents")
        self.space, self.budget, self.name = space, budget, name
        self.size, self.steering = population, steering
        self.rng = np.random.default_rng(seed)
        self.archive = Archive(space.length)
        self.genes = space.coarse
        """The genes that vary now, bool [L]: at first those of block ends, then (None) all."""
        self._worst = np.full(2, -np.inf)

    @abstractmethod
    def batches(self) -> Generator[np.ndarray, Individuals, None]:
        """Genotypes int8 [n, L] to evaluate; all of them are sent back evaluated. May never end: the budget does."""

    def start(self) -> np.ndarray:
        """The first requests, int8 [n, L]: both parents, their ensemble, single stitches, and a stratified sample.

        All networks with one stitch, or those with one at the end of a block, unless they would take more than
        `SINGLE_STITCHES` of the budget.
        """
        length, single = self.space.length, single_stitches(self.space.length)
        coarse = single if self.space.coarse is None else single[single[:, ~self.space.coarse].sum(1) == 0]
        affordable = (each for each in (single, coarse) if len(each) <= SINGLE_STITCHES * self.budget.total)
        sample = initial_population(self.space, self.size, self.rng, self.genes)
        return np.concatenate([references(length), next(affordable, single[:0]), sample])

    def select(self, started: Individuals) -> Individuals:
        """The first population: the references, and the fittest others of the first requests."""
        known = np.arange(3)
        return started.take(np.append(known, 3 + fittest(started.objectives[3:], self.size - 3)))

    def run(self, evaluate: Evaluate, on_generation: Callable[[Archive, Budget], None] | None = None) -> Archive:
        """Search until the budget is spent or `batches` ends; `on_generation` is called after each batch."""
        batches, evaluated = self.batches(), None
        while self.budget.remaining and (genotypes := advance(batches, evaluated)) is not None:
            evaluated = self._evaluate(genotypes, evaluate)
            if self.budget.requests >= COARSE * self.budget.total or self.budget.idle >= self.size:
                self.genes = None
            if on_generation:
                on_generation(self.archive, self.budget)
            if len(evaluated.genotypes) < len(genotypes):
                break
        return self.archive

    @property
    def threshold(self) -> float:
        """T = steering * n / budget with n phenotypes evaluated so far, as the authors' code computes it."""
        return self.steering * self.budget.unique / self.budget.total

    def _evaluate(self, genotypes: np.ndarray, evaluate: Evaluate) -> Individuals:
        """Evaluate as many of a batch as the budget allows; of a budget of unique networks, known ones take nothing."""
        parts, genotypes = [], np.asarray(genotypes, np.int8)
        while len(genotypes) and self.budget.remaining:
            requested, genotypes = np.split(genotypes, [self.budget.remaining])
            found = evaluate(requested)
            self.budget.spend(requested, found.active)
            finite = np.isfinite(found.objectives).all(1)
            objectives = self._replace_failed(found.objectives, finite)
            kept = finite & found.measured
            part = Individuals(requested, objectives, found.accuracy, found.active, kept.copy())
            part.archived[kept] = self.archive.add(part.take(kept), self.threshold)
            parts.append(part)
        return Individuals(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))

    def _replace_failed(self, objectives: np.ndarray, finite: np.ndarray) -> np.ndarray:
        """Objectives with those that are not finite replaced by the worst seen so far."""
        self._worst = np.maximum(self._worst, objectives[finite].max(0, initial=-np.inf))
        if not np.isfinite(self._worst).all():
            raise RecombineError("none of the first offspring could be evaluated: their objectives are not finite")
        return np.where(finite[:, None], objectives, self._worst)


def advance(procedure: Generator[Any, Any, None], evaluated: Any) -> Any:
    """The next request of a procedure, given its last one evaluated (at first None); None when it is done."""
    try:
        return procedure.send(evaluated)
    except StopIteration:
        return None
