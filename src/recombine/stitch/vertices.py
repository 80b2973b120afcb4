"""The vertices of a supernetwork: what each reads under a genotype, and which of them a genotype requires."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from graphlib import CycleError, TopologicalSorter
from typing import NamedTuple

import numpy as np
from torch.fx import Node

from recombine.core.errors import ConfigError

__all__ = ["STITCH", "Operand", "Vertex", "VertexGraph"]

STITCH = 2
"""Side of a vertex that belongs to neither A (0) nor B (1)."""


class Operand(NamedTuple):
    """An input of a vertex: the value of `vertex`, or of `stitched` where gene `gene` is 1."""

    vertex: int
    gene: int = -1
    """-1: there is no switch."""
    stitched: int = -1

    def source(self, genotype: np.ndarray) -> int:
        """The vertex that is read under a genotype."""
        return self.stitched if self.gene >= 0 and genotype[self.gene] else self.vertex


class Vertex(NamedTuple):
    """One step of the supernetwork: an operation of a parent, or a stitch."""

    side: int
    content: Node | int
    """The operation's node; of a stitch, the gene whose switch it feeds."""
    operands: tuple[Operand, ...]
    """In the order of the node's `all_input_nodes`."""
    cost: int
    """Multiply-adds for one image."""


class VertexGraph:
    """All vertices of a supernetwork, and the outputs of its networks."""

    def __init__(self, vertices: Sequence[Vertex], outputs: Sequence[tuple[Operand, ...]]) -> None:
        """`outputs`: what each value of the output gene reads. ConfigError if the vertices form a cycle."""
        self.vertices, self.outputs = tuple(vertices), tuple(outputs)
        self._rank = self._topological_rank()

    def _topological_rank(self) -> list[int]:
        """The position of each vertex in one order in which every genotype can be computed."""
        sources = {
            number: [k for operand in vertex.operands for k in (operand.vertex, operand.stitched) if k >= 0]
            for number, vertex in enumerate(self.vertices)
        }
        try:
            order = list(TopologicalSorter(sources).static_order())
        except CycleError as error:
            raise ConfigError("these pairs cannot be joined all together: they close a cycle") from error
        rank = [0] * len(order)
        for position, vertex in enumerate(order):
            rank[vertex] = position
        return rank

    def required(self, genotype: np.ndarray, operands: Iterable[Operand] | None = None) -> tuple[list[int], np.ndarray]:
        """The vertices that a genotype computes, in order, and which of its genes are active, bool [2m + 1].

        A switch is active if there is a path from it to the output, or to `operands` given in its place, along the
        inputs that the genotype chooses; the output gene always is. Inactive genes change nothing.
        """
        found: set[int] = set()
        active = np.zeros(len(genotype), bool)
        active[-1] = True
        pending = list(self.outputs[genotype[-1]] if operands is None else operands)
        while pending:
            operand = pending.pop()
            if operand.gene >= 0:
                active[operand.gene] = True
            vertex = operand.source(genotype)
            if vertex not in found:
                found.add(vertex)
                pending += self.vertices[vertex].operands
        return sorted(found, key=self._rank.__getitem__), active

    def cost(self, genotype: np.ndarray) -> int:
        """Multiply-adds of one image, stitches included."""
        return sum(self.vertices[vertex].cost for vertex in self.required(genotype)[0])
