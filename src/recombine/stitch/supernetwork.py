"""The supernetwork: two frozen parents, stitches between them, and a switch behind every joined node (section 5).

A switch hands on the node's own value (0) or the other network's through a stitch (1); stitches read the value before
the switch. A genotype, int8 [2m + 1], says what all switches do, in the order of the pairs and A's before B's; its last
gene chooses the output: 0 is A's, 1 is B's, 2 the mean of both (logits).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from graphlib import CycleError, TopologicalSorter
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.fx.node import map_arg

from recombine.core.errors import ConfigError
from recombine.models.blocks import ancestors
from recombine.stitch.cost import multiply_adds, node_costs
from recombine.stitch.execution_plan import ExecutionPlan
from recombine.stitch.layers import CHANNEL_AXIS, make_stitch
from recombine.stitch.parents import Parent

__all__ = ["ENSEMBLE", "STITCH", "Read", "Renormalise", "StitchPoint", "Supernetwork", "Vertex"]

ENSEMBLE = 2
"""Value of the output gene that averages both parents' logits."""
STITCH = 2
"""Side of a vertex that belongs to neither A (0) nor B (1)."""


class StitchPoint(NamedTuple):
    """Two nodes, of A and of B, that are joined; gene 2k is the switch behind a of pair k, 2k + 1 that behind b."""

    a: Node
    b: Node


class Read(NamedTuple):
    """What a vertex reads: the value of vertex `own`, or of `stitched` where gene `gene` is 1."""

    own: int
    gene: int = -1
    """-1: no switch stands here."""
    stitched: int = -1


class Vertex(NamedTuple):
    """One step of the supernetwork: an operation of a parent, or a stitch."""

    side: int
    what: Node | int
    """The operation's node; of a stitch, the gene whose switch it feeds."""
    reads: tuple[Read, ...]
    """In the order of the node's `all_input_nodes`."""
    cost: int
    """Multiply-adds for one image."""


class Renormalise(nn.Module):
    """Images normalised for one network -> the same normalised for another."""

    def __init__(self, mean: Sequence[float], std: Sequence[float], to_mean: Sequence[float], to_std: Sequence[float]):
        super().__init__()
        mean_, std_, to_mean_, to_std_ = (torch.tensor(v, dtype=torch.float64) for v in (mean, std, to_mean, to_std))
        self.same = torch.equal(mean_, to_mean_) and torch.equal(std_, to_std_)
        self.register_buffer("scale", (std_ / to_std_).float().view(1, 3, 1, 1), persistent=False)
        self.register_buffer("offset", ((mean_ - to_mean_) / to_std_).float().view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> the same shape; untouched where both networks normalise alike."""
        return images if self.same else torch.addcmul(self.offset, images, self.scale)


class Supernetwork(nn.Module):
    """Both parents with the stitches of all pairs; `genotype` says which network `forward` is, at first the ensemble.

    The parents are frozen copies in eval mode; only stitches have parameters that train.
    """

    def __init__(self, parents: tuple[Parent, Parent], pairs: Iterable[StitchPoint]) -> None:
        """`pairs` in a topological order of the joined graph; ConfigError if joining them closes a cycle."""
        super().__init__()
        self.parents, self.pairs = parents, tuple(pairs)
        self.preprocess = parents[0].model.preprocess
        self.nets = nn.ModuleList(parent.net for parent in parents)
        own, other = (parent.model for parent in parents)
        self.renormalise = Renormalise(own.mean, own.std, other.mean, other.std)
        self.stitches = nn.ModuleList(
            make_stitch(self.layout(gene), self.channels(gene ^ 1), self.channels(gene))
            for gene in range(2 * len(self.pairs))
        )
        self.vertices, self.roots, self.joined = self._vertices()
        self.rank = self._ranked()
        self.set_genotype(np.array([0] * len(self.stitches) + [ENSEMBLE], np.int8))

    def train(self, mode: bool = True) -> Supernetwork:
        """The parents stay in eval mode."""
        super().train(mode)
        self.nets.eval()
        return self

    # ------------------------------------------------------------------------------------------- structure

    @property
    def alphabet(self) -> np.ndarray:
        """How many values each gene has: 2 for a switch, 3 for the output."""
        return np.array([2] * len(self.stitches) + [ENSEMBLE + 1])

    def node(self, gene: int) -> tuple[Parent, Node]:
        """The node behind which the switch of a gene stands, and its parent."""
        return self.parents[gene % 2], self.pairs[gene // 2][gene % 2]

    def layout(self, gene: int) -> str:
        """How the values that the stitch of a gene reads and gives are laid out."""
        parent, node = self.node(gene)
        return parent.layout(node)

    def channels(self, gene: int) -> int:
        """Channels of the node of a gene, which its stitch gives; it reads `channels(gene ^ 1)`."""
        return self.node(gene)[1].meta["shape"][CHANNEL_AXIS[self.layout(gene)]]

    def _vertices(self) -> tuple[list[Vertex], list[tuple[Read, ...]], list[int]]:
        """All vertices, what each value of the output gene reads, and the vertex of each gene's node."""
        needed = [ancestors([parent.output]) for parent in self.parents]
        places = [
            (side, node)
            for side, parent in enumerate(self.parents)
            for node in parent.graph.nodes
            if node in needed[side]
        ]
        number = {place: k for k, place in enumerate(places)}
        joined = [number[gene % 2, self.node(gene)[1]] for gene in range(len(self.stitches))]
        gene_of = {vertex: gene for gene, vertex in enumerate(joined)}

        def read(side: int, node: Node) -> Read:
            vertex = number[side, node]
            gene = gene_of.get(vertex, -1)
            return Read(vertex) if gene < 0 else Read(vertex, gene, len(places) + gene)

        costs = [node_costs(parent) for parent in self.parents]
        vertices = [
            Vertex(side, node, tuple(read(side, source) for source in node.all_input_nodes), costs[side][node])
            for side, node in places
        ]
        for gene, stitch in enumerate(self.stitches):
            cost = multiply_adds(stitch, self.node(gene)[1].meta["shape"])
            vertices.append(Vertex(STITCH, gene, (Read(joined[gene ^ 1]),), cost))
        ends = [read(side, parent.output) for side, parent in enumerate(self.parents)]
        return vertices, [(ends[0],), (ends[1],), tuple(ends)], joined

    def _ranked(self) -> list[int]:
        """The place of each vertex in one order in which every genotype can be computed."""
        above = {
            vertex: [k for read in about.reads for k in (read.own, read.stitched) if k >= 0]
            for vertex, about in enumerate(self.vertices)
        }
        try:
            order = list(TopologicalSorter(above).static_order())
        except CycleError as error:
            raise ConfigError("these pairs cannot be joined all together: they close a cycle") from error
        rank = [0] * len(order)
        for place, vertex in enumerate(order):
            rank[vertex] = place
        return rank

    # -------------------------------------------------------------------------------------------- genotypes

    def check_genotype(self, genotype: Sequence[int] | np.ndarray) -> np.ndarray:
        """The genotype as int8; ConfigError if it has another length or a value out of range."""
        array = np.asarray(genotype)
        if array.shape != self.alphabet.shape or (array < 0).any() or (array >= self.alphabet).any():
            raise ConfigError(
                f"a genotype of {self.name} has {len(self.alphabet) - 1} switches (0 or 1) and an output (0, 1 or 2), "
                f"not {array.shape} values from {array.min()} to {array.max()}"
            )
        return array.astype(np.int8)

    @property
    def name(self) -> str:
        """Both parents' names."""
        return " x ".join(parent.name for parent in self.parents)

    def needed(self, genotype: np.ndarray, reads: Iterable[Read] | None = None) -> tuple[list[int], np.ndarray]:
        """The vertices that a genotype computes, in order, and which of its genes are active (section 8.2).

        A switch is active if the output, or what `reads` names in its place, can be reached from it; the output gene
        always is. What inactive genes say changes nothing.
        """
        found: set[int] = set()
        active = np.zeros(len(genotype), bool)
        active[-1] = True
        open_ = list(self.roots[genotype[-1]] if reads is None else reads)
        while open_:
            read = open_.pop()
            vertex = read.own
            if read.gene >= 0:
                active[read.gene] = True
                vertex = read.stitched if genotype[read.gene] else read.own
            if vertex not in found:
                found.add(vertex)
                open_ += self.vertices[vertex].reads
        return sorted(found, key=self.rank.__getitem__), active

    def active(self, genotype: np.ndarray) -> np.ndarray:
        """Which genes matter, bool [2m + 1]."""
        return self.needed(genotype)[1]

    def phenotype(self, genotype: np.ndarray) -> np.ndarray:
        """The genotype with its inactive genes at 0: equal if and only if the networks are."""
        return np.where(self.active(genotype), genotype, 0).astype(np.int8)

    def cost(self, genotype: np.ndarray) -> int:
        """Multiply-adds of one image, stitches included (section 9)."""
        return sum(self.vertices[vertex].cost for vertex in self.needed(genotype)[0])

    # -------------------------------------------------------------------------------------------- computing

    def set_genotype(self, genotype: Sequence[int] | np.ndarray) -> None:
        """Choose which network `forward` is."""
        self.genotype = self.check_genotype(genotype)
        self._plan = ExecutionPlan(self, [self.genotype])

    def forward(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] -> logits [B, C] of the chosen network."""
        return self._plan.logits(self.preprocess(images))[0].float()

    def many(self, images: Tensor, genotypes: Sequence[np.ndarray]) -> list[Tensor]:
        """uint8 [B, 3, H, W] -> logits of all these networks; what several of them compute is computed once."""
        return [logits.float() for logits in ExecutionPlan(self, genotypes).logits(self.preprocess(images))]

    @torch.no_grad()
    def features(self, images: Tensor) -> list[Tensor]:
        """uint8 [B, 3, H, W] -> what the parents themselves compute at the node of each gene, one pass of each."""
        untouched = np.zeros_like(self.genotype)
        reads = tuple(Read(vertex) for vertex in self.joined)
        return ExecutionPlan(self, [untouched], reads).values(self.preprocess(images))[0]

    def compute(self, vertex: int, images: Tensor, values: Sequence[Any]) -> Any:
        """The value of a vertex from those that it reads; `images` are normalised for A."""
        side, what, *_ = self.vertices[vertex]
        if side == STITCH:
            return self.stitches[what](*values)
        if what.op == "placeholder":
            return self.renormalise(images) if side else images
        net = self.nets[side]
        if what.op == "get_attr":
            owner, _, name = what.target.rpartition(".")
            return getattr(net.get_submodule(owner), name)
        given = dict(zip(what.all_input_nodes, values, strict=True))
        args, kwargs = map_arg((what.args, what.kwargs), given.__getitem__)
        if what.op == "call_module":
            return net.get_submodule(what.target)(*args, **kwargs)
        if what.op == "call_method":
            return getattr(args[0], what.target)(*args[1:], **kwargs)
        return what.target(*args, **kwargs)
