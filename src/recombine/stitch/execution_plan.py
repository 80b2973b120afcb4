"""Many genotypes in one pass: what several of them compute is computed once, and freed after its last use."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from recombine.stitch.vertices import Operand, VertexGraph

__all__ = ["Compute", "ExecutionPlan"]

Compute = Callable[[int, Tensor, Sequence[Any]], Any]
"""The value of a vertex, from the images and the values of its operands."""


class ExecutionPlan:
    """The steps of several genotypes of a supernetwork.

    Two genotypes share a step if it is the same vertex with the same values going in; so offspring share the parents'
    layers below their first stitches, and whatever else they have in common.
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
        self.freed = self._freed()

    def _freed(self) -> list[list[int]]:
        """For each step, the steps whose values no later one reads."""
        last_use = {source: k for k, (_, sources) in enumerate(self.steps) for source in sources}
        kept = {step for result in self.results for step in result}
        freed: list[list[int]] = [[] for _ in self.steps]
        for source, k in last_use.items():
            if source not in kept:
                freed[k].append(source)
        return freed

    def run(self, compute: Compute, images: Tensor) -> list[list[Any]]:
        """Images [B, 3, H, W] normalised for A -> the results of each genotype."""
        values: list[Any] = [None] * len(self.steps)
        for k, (vertex, sources) in enumerate(self.steps):
            values[k] = compute(vertex, images, [values[source] for source in sources])
            for source in self.freed[k]:
                values[source] = None
        return [[values[step] for step in result] for result in self.results]

    def logits(self, compute: Compute, images: Tensor) -> list[Tensor]:
        """Images [B, 3, H, W] normalised for A -> logits [B, C] of each genotype; of two outputs, their mean."""
        return [sum(outputs) / len(outputs) for outputs in self.run(compute, images)]
