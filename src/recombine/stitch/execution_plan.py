"""Many genotypes in one pass: what several of them compute is computed once, and let go after its last use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    from recombine.stitch.supernetwork import Read, Supernetwork

__all__ = ["ExecutionPlan"]


class ExecutionPlan:
    """The steps of some genotypes of a supernetwork.

    Two genotypes share a step if it is the same vertex with the same values going in; so offspring share the parents'
    layers below their first stitches, and whatever else they have in common.
    """

    def __init__(self, net: Supernetwork, genotypes: Sequence[np.ndarray], reads: Sequence[Read] | None = None) -> None:
        """`reads`: what is wanted of each genotype, in place of its output."""
        self.net = net
        self.steps: list[tuple[int, tuple[int, ...]]] = []
        """Vertex, and the steps whose values it reads."""
        known: dict[tuple[int, tuple[int, ...]], int] = {}
        self.wanted: list[tuple[int, ...]] = []
        """For each genotype, the steps whose values are its result."""
        for genotype in genotypes:
            at: dict[int, int] = {}

            def found(read: Read, genotype=genotype, at=at) -> int:
                return at[read.stitched if read.gene >= 0 and genotype[read.gene] else read.own]

            for vertex in net.needed(genotype, reads)[0]:
                step = (vertex, tuple(found(read) for read in net.vertices[vertex].reads))
                at[vertex] = known.setdefault(step, len(self.steps))
                if at[vertex] == len(self.steps):
                    self.steps.append(step)
            self.wanted.append(tuple(found(read) for read in (reads or net.roots[genotype[-1]])))
        last = {source: k for k, (_, sources) in enumerate(self.steps) for source in sources}
        kept = {step for wanted in self.wanted for step in wanted}
        self.over: list[list[int]] = [[] for _ in self.steps]
        """The steps whose values nobody reads after this one."""
        for source, k in last.items():
            if source not in kept:
                self.over[k].append(source)

    def values(self, images: Tensor) -> list[list[Any]]:
        """Images [B, 3, H, W] normalised for A -> the wanted values of each genotype."""
        values: list[Any] = [None] * len(self.steps)
        for k, (vertex, sources) in enumerate(self.steps):
            values[k] = self.net.compute(vertex, images, [values[source] for source in sources])
            for source in self.over[k]:
                values[source] = None
        return [[values[step] for step in wanted] for wanted in self.wanted]

    def logits(self, images: Tensor) -> list[Tensor]:
        """Images [B, 3, H, W] normalised for A -> logits [B, C] of each genotype; of two outputs, their mean."""
        return [sum(outputs) / len(outputs) for outputs in self.values(images)]
