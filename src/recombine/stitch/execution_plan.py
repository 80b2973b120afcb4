"""Many genotypes in one pass: what several of them compute is computed once, and freed after its last use."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from types import MappingProxyType
from typing import Any

import numpy as np
from torch import Tensor

from recombine.stitch.vertices import Operand, VertexGraph

__all__ = ["Compute", "ExecutionPlan"]

Compute = Callable[[int, Tensor, Sequence[Any]], Any]
"""The value of a vertex, from the images and the values of its operands."""


class ExecutionPlan:
    """The steps of several genotypes of a supernetwork.

    Two genotypes share a step if it is the same vertex with the same inputs; so offspring share the parents' layers
    below their first stitches, and all else they have in common.
    """

    def __init__(
        self, graph: VertexGraph, genotypes: Iterable[np.ndarray], operands: Sequence[Operand] | None = None
    ) -> None:
        """`operands`: what is computed for each genotype, in place of its output."""
        self.steps: list[tuple[int, tuple[int, ...]]] = []
        """Vertex, and the steps whose values it reads."""
        self.results: list[tuple[int, ...]] = []
        """For each genotype, the steps whose values are its result."""
        number: dict[tuple[int, tuple[int, ...]], int] = {}
        for genotype in genotypes:
            step_of: dict[int, int] = {}
            for vertex in graph.required(genotype, operands)[0]:
                sources = tuple(step_of[operand.source(genotype)] for operand in graph.vertices[vertex].operands)
                step_of[vertex] = number.setdefault((vertex, sources), len(self.steps))
                if step_of[vertex] == len(self.steps):
                    self.steps.append((vertex, sources))
            outputs = operands or graph.outputs[genotype[-1]]
            self.results.append(tuple(step_of[operand.source(genotype)] for operand in outputs))
        self.needed: Sequence[int] = range(len(self.steps))
        self.freed = self._freed()

    def keep(self, positions: Sequence[int]) -> ExecutionPlan:
        """The same steps, of which only those that some of the genotypes need are computed."""
        kept = copy(self)
        kept.results = [self.results[position] for position in positions]
        needed, open_ = set(), [step for result in kept.results for step in result]
        while open_:
            step = open_.pop()
            if step not in needed:
                needed.add(step)
                open_ += self.steps[step][1]
        kept.needed = sorted(needed)
        kept.freed = kept._freed()
        return kept

    def _freed(self) -> list[list[int]]:
        """For each step, the steps whose values no later one reads."""
        last_use = {source: k for k in self.needed for source in self.steps[k][1]}
        kept = {step for result in self.results for step in result}
        freed: list[list[int]] = [[] for _ in self.steps]
        for source, k in last_use.items():
            if source not in kept:
                freed[k].append(source)
        return freed

    def run(
        self, compute: Compute, images: Tensor, instead: Mapping[int, Callable[..., Any]] = MappingProxyType({})
    ) -> list[list[Any]]:
        """Images [B, 3, H, W] normalised for A -> the results of each genotype; `instead` computes the steps it has."""
        values: list[Any] = [None] * len(self.steps)
        for k in self.needed:
            vertex, sources = self.steps[k]
            read = [values[source] for source in sources]
            values[k] = instead[k](*read) if k in instead else compute(vertex, images, read)
            for source in self.freed[k]:
                values[source] = None
        return [[values[step] for step in result] for result in self.results]
