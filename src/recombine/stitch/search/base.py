"""What all search algorithms share: asking in batches within the budget, the archive and the threshold of steering."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator
from typing import Any

import numpy as np

from recombine.core.errors import ConfigError, RecombineError
from recombine.stitch.search.archive import Archive
from recombine.stitch.search.space import Budget, Evaluate, Individuals, Space

__all__ = ["Search", "advance"]


class Search(ABC):
    """A search algorithm: `batches` says what it asks for next, `run` asks, counts and keeps the best.

    Synchronous. Deviation: the authors keep as many evaluations in flight as there are individuals and handle each
    answer when it comes; here a batch is answered as a whole, which makes runs repeatable (section 19, 13).
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
        """`name` is the search's in rows; `steering` the accuracy asked for by the time all of the budget is spent."""
        if space.length < 3:
            raise ConfigError("no layers of the parents match, so there is nothing to search; take other parents")
        self.space, self.budget, self.name = space, budget, name
        self.size, self.steering = population, steering
        self.rng = np.random.default_rng(seed)
        self.archive = Archive(space.length)
        self._worst = np.full(2, -np.inf)

    @abstractmethod
    def batches(self) -> Generator[np.ndarray, Individuals, None]:
        """Genotypes int8 [n, L] to evaluate; what became of all of them is sent back. Ends with the budget at last."""

    def run(self, evaluate: Evaluate, on_generation: Callable[[Archive, Budget], None] | None = None) -> Archive:
        """Search until the budget is spent or nothing is left to ask; `on_generation` is called after each batch."""
        batches, answer = self.batches(), None
        while self.budget.left and (genotypes := advance(batches, answer)) is not None:
            answer = self._measure(genotypes, evaluate)
            if on_generation:
                on_generation(self.archive, self.budget)
            if len(answer.genotypes) < len(genotypes):
                break
        return self.archive

    @property
    def threshold(self) -> float:
        """T = steering * n / budget with n phenotypes evaluated so far (section 11.3, as executed)."""
        return self.steering * self.budget.unique / self.budget.total

    def _measure(self, genotypes: np.ndarray, evaluate: Evaluate) -> Individuals:
        """As many of a batch as the budget leaves; where it counts what is new, known ones leave room for more."""
        parts, genotypes = [], np.asarray(genotypes, np.int8)
        while len(genotypes) and self.budget.left:
            some, genotypes = np.split(genotypes, [self.budget.left])
            found = evaluate(some)
            self.budget.spend(some, found.active)
            worked = np.isfinite(found.objectives).all(1)
            objectives = self._replace_failed(found.objectives, worked)
            part = Individuals(some, objectives, found.accuracy, found.active, worked.copy())
            part.entered[worked] = self.archive.add(part.take(worked), self.threshold)
            parts.append(part)
        return Individuals(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))

    def _replace_failed(self, objectives: np.ndarray, worked: np.ndarray) -> np.ndarray:
        """Objectives with those of an offspring that did not work as bad as the worst seen so far."""
        self._worst = np.maximum(self._worst, objectives[worked].max(0, initial=-np.inf))
        if not np.isfinite(self._worst).all():
            raise RecombineError("none of the first offspring could be evaluated: their objectives are not finite")
        return np.where(worked[:, None], objectives, self._worst)


def advance(procedure: Generator[Any, Any, None], answer: Any) -> Any:
    """What a procedure asks for next, given the answer to its last request (at first None); None when it is done."""
    try:
        return procedure.send(answer)
    except StopIteration:
        return None
