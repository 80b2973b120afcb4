"""NSGA-II by pymoo, with the initial population and the mutation of the other algorithms."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import numpy as np
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.core.duplicate import DuplicateElimination
from pymoo.core.evaluator import Evaluator
from pymoo.core.mutation import Mutation
from pymoo.core.population import Population
from pymoo.core.problem import Problem
from pymoo.core.termination import NoTermination
from pymoo.operators.crossover.pntx import TwoPointCrossover
from pymoo.problems.static import StaticProblem

from recombine.stitch.search.base import Search
from recombine.stitch.search.population import mutate
from recombine.stitch.search.space import Budget, Individuals, Space

__all__ = ["Nsga2"]


class Nsga2(Search):
    """Two-point crossover, mutation of one gene on average, no offspring equal to a member of the population.

    There is no steering: ranks and crowding distances need none.
    """

    def __init__(
        self, space: Space, budget: Budget, *, name: str = "nsga2", seed: int = 0, population: int = 128
    ) -> None:
        super().__init__(space, budget, name=name, seed=seed, population=population, steering=0.0)

    def batches(self) -> Generator[np.ndarray, Individuals, None]:
        """What pymoo requests; ends early when it finds no offspring that is not in the population, with any genes."""
        problem = Problem(n_var=self.space.length, n_obj=2, xl=0, xu=self.space.alphabet - 1, vtype=int)
        algorithm = NSGA2(
            pop_size=self.size,
            sampling=self.start(),
            crossover=TwoPointCrossover(),
            mutation=_OtherValue(self),
            eliminate_duplicates=_SamePhenotype(),
        )
        algorithm.setup(problem, termination=NoTermination(), seed=int(self.rng.integers(2**31)))
        while (offspring := algorithm.ask()) is not None or self.genes is not None:
            if offspring is None:  # all networks of block ends are known
                self.genes = None
                continue
            found = yield offspring.get("X")
            offspring.set("active", found.active)
            Evaluator().eval(StaticProblem(problem, F=found.objectives), offspring)
            algorithm.tell(offspring)


class _OtherValue(Mutation):
    def __init__(self, search: Search) -> None:
        super().__init__()
        self.search = search

    def _do(self, problem: Problem, X: np.ndarray, random_state: np.random.Generator, **_: Any) -> np.ndarray:
        return mutate(X, self.search.space.alphabet, random_state, self.search.genes)


class _SamePhenotype(DuplicateElimination):
    """An offspring is the same network as a known one if it has that one's active genes, whatever the others are.

    Which genes of an offspring are active is not known before it is evaluated, so offspring that no one has evaluated
    are told apart by all genes.
    """

    def _do(self, pop: Population, other: Population | None, is_duplicate: np.ndarray) -> np.ndarray:
        genes = pop.get("X")
        if other is None:
            _, firsts = np.unique(genes, axis=0, return_index=True)
            is_duplicate[:] = True
            is_duplicate[firsts] = False
            return is_duplicate
        for one in other:
            matters = one.get("active")
            same = genes == one.X
            is_duplicate |= (same if matters is None else same | ~matters).all(1)
        return is_duplicate
