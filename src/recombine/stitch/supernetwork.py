"""The supernetwork: two frozen parents, stitches between them, and a switch behind every joined node.

A switch passes on the value of its node (0) or the other network's through a stitch (1); stitches read the value
before the switch. A genotype, int8 [2m + 1], sets all switches, in the order of the pairs and A's before B's; its last
gene chooses the output: 0 is A's, 1 is B's, 2 the mean of both (`OutputEnsemble`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import attrgetter
from types import MappingProxyType
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.fx.node import map_arg

from recombine.core.errors import ConfigError
from recombine.models.blocks import ancestors
from recombine.stitch.cost import multiply_adds, node_costs
from recombine.stitch.ensemble import Mean, OutputEnsemble
from recombine.stitch.execution_plan import ExecutionPlan
from recombine.stitch.layers import CHANNEL_AXIS, affine_part, make_stitch
from recombine.stitch.parents import Parent
from recombine.stitch.search.space import ENSEMBLE, phenotypes
from recombine.stitch.tasks import Task, for_task
from recombine.stitch.vertices import STITCH, Operand, Vertex, VertexGraph

__all__ = ["Renormalise", "StitchPoint", "Supernetwork"]


class StitchPoint(NamedTuple):
    """Two nodes, of A and of B, that are joined; gene 2k is the switch behind a of pair k, 2k + 1 that behind b."""

    a: Node
    b: Node


class Renormalise(nn.Module):
    """Images normalised for one network -> the same normalised for another."""

    scale: Tensor
    offset: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float], to_mean: Sequence[float], to_std: Sequence[float]):
        super().__init__()
        mean_, std_, to_mean_, to_std_ = (torch.tensor(v, dtype=torch.float64) for v in (mean, std, to_mean, to_std))
        self.same = torch.equal(mean_, to_mean_) and torch.equal(std_, to_std_)
        self.register_buffer("scale", (std_ / to_std_).float().view(1, 3, 1, 1), persistent=False)
        self.register_buffer("offset", ((mean_ - to_mean_) / to_std_).float().view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> the same shape; untouched where both networks normalise alike."""
        return images if self.same else torch.addcmul(self.offset, images, self.scale)


def _common_task(parents: tuple[Parent, Parent]) -> Task:
    """How both parents are scored; ConfigError unless they give logits alike."""
    a, b = (tuple(parent.output.meta["shape"]) for parent in parents)
    if len(a) == len(b) and a[1] != b[1]:
        names = " and ".join(parent.name for parent in parents)
        raise ConfigError(f"{names} tell {a[1]} and {b[1]} classes apart; both parents have to be of one task")
    if a != b:
        gives = " and ".join(f"{p.name} {'labels pixels' if p.dense else 'labels images'}" for p in parents)
        raise ConfigError(f"{gives}; both parents have to be of one task")
    return for_task("segmentation" if parents[0].dense else "classification", a[1])


class Supernetwork(nn.Module):
    """Both parents with the stitches of all pairs; `genotype` selects what `forward` computes, at first the ensemble.

    The parents are frozen copies in eval mode; only stitches have parameters that train.
    """

    def __init__(self, parents: tuple[Parent, Parent], pairs: Iterable[StitchPoint], ensemble: Mean = "logits") -> None:
        """`pairs` in a topological order of the joined graph; ConfigError if joining them closes a cycle.

        `ensemble`: what offspring with two outputs average.
        """
        super().__init__()
        self.parents, self.pairs = parents, tuple(pairs)
        self.preprocess = parents[0].model.preprocess
        self.nets = nn.ModuleList(parent.net for parent in parents)
        a, b = (parent.model for parent in parents)
        self.task = _common_task(parents)
        self.renormalise = Renormalise(a.mean, a.std, b.mean, b.std)
        self.stitches = nn.ModuleList(
            make_stitch(self.layout(gene ^ 1), self.shape(gene ^ 1), self.layout(gene), self.shape(gene))
            for gene in range(2 * len(self.pairs))
        )
        self.ensemble = OutputEnsemble(ensemble)
        self.graph, self.joined = self._build_graph()
        self.set_genotype(np.array([0] * len(self.stitches) + [ENSEMBLE], np.int8))

    def train(self, mode: bool = True) -> Supernetwork:
        """The parents stay in eval mode."""
        super().train(mode)
        self.nets.eval()
        return self

    # ------------------------------------------------------------------------------------------- structure

    @property
    def alphabet(self) -> np.ndarray:
        """Number of values of each gene: 2 for a switch, 3 for the output."""
        return np.array([2] * len(self.stitches) + [ENSEMBLE + 1])

    @property
    def coarse(self) -> np.ndarray | None:
        """bool [2m + 1]: genes of pairs of block ends, and the output; None if that is all of them or no other."""
        ends = [pair.a in self.parents[0].ends and pair.b in self.parents[1].ends for pair in self.pairs]
        return np.append(np.repeat(ends, 2), True) if 0 < sum(ends) < len(ends) else None

    def node(self, gene: int) -> tuple[Parent, Node]:
        """The node behind which the switch of a gene stands, and its parent."""
        return self.parents[gene % 2], self.pairs[gene // 2][gene % 2]

    def shape(self, gene: int) -> tuple[int, ...]:
        """Shape of the values of the node of a gene, which its stitch returns, for one image."""
        return tuple(self.node(gene)[1].meta["shape"])

    def layout(self, gene: int) -> str:
        """Layout of these values; the stitch of a gene reads `layout(gene ^ 1)`."""
        parent, node = self.node(gene)
        layout = parent.layout(node)
        if layout is None:
            raise ConfigError(f"the value of {node.name} of {parent.name} cannot be stitched")
        return layout

    def channels(self, gene: int) -> int:
        """Channels of the node of a gene, which its stitch returns; it reads `channels(gene ^ 1)`."""
        return self.shape(gene)[CHANNEL_AXIS[self.layout(gene)]]

    def _build_graph(self) -> tuple[VertexGraph, list[int]]:
        """The graph of all vertices, and the vertex of each gene's node."""
        required = [ancestors(parent.outputs) for parent in self.parents]
        nodes = [
            (side, node)
            for side, parent in enumerate(self.parents)
            for node in parent.graph.nodes
            if node in required[side]
        ]
        number = {place: k for k, place in enumerate(nodes)}
        joined = [number[gene % 2, self.node(gene)[1]] for gene in range(len(self.stitches))]
        gene_of = {vertex: gene for gene, vertex in enumerate(joined)}

        def operand(side: int, node: Node) -> Operand:
            vertex = number[side, node]
            gene = gene_of.get(vertex, -1)
            return Operand(vertex) if gene < 0 else Operand(vertex, gene, len(nodes) + gene)

        costs = [node_costs(parent) for parent in self.parents]
        vertices = [
            Vertex(side, node, tuple(operand(side, source) for source in node.all_input_nodes), costs[side][node])
            for side, node in nodes
        ]
        for gene, stitch in enumerate(self.stitches):
            cost = multiply_adds(affine_part(stitch), self.shape(gene))
            vertices.append(Vertex(STITCH, gene, (Operand(joined[gene ^ 1]),), cost))
        a, b = (operand(side, parent.output) for side, parent in enumerate(self.parents))
        return VertexGraph(vertices, [(a,), (b,), (a, b)]), joined

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

    def active(self, genotype: np.ndarray) -> np.ndarray:
        """Genes that have an effect, bool [2m + 1]."""
        return self.graph.required(genotype)[1]

    def phenotype(self, genotype: np.ndarray) -> np.ndarray:
        """The genotype with its inactive genes at 0: equal if and only if the networks are."""
        return phenotypes(genotype, self.active(genotype))

    def cost(self, genotype: np.ndarray) -> int:
        """Multiply-adds of one image, stitches included."""
        return self.graph.cost(genotype)

    def num_parameters(self, genotype: np.ndarray) -> int:
        """Parameters of the network of a genotype, stitches included; what it calls twice counts once."""
        found: dict[tuple[int, Any], int] = {}
        for vertex in self.graph.required(genotype)[0]:
            side, content, *_ = self.graph.vertices[vertex]
            if isinstance(content, int):
                found[side, content] = sum(p.numel() for p in self.stitches[content].parameters())
            elif content.op == "call_module":
                part = self.nets[side].get_submodule(str(content.target))
                found[side, content.target] = sum(p.numel() for p in part.parameters())
            elif content.op == "get_attr":
                value = attrgetter(str(content.target))(self.nets[side])
                found[side, content.target] = value.numel() if isinstance(value, nn.Parameter) else 0
        return sum(found.values())

    # -------------------------------------------------------------------------------------------- computing

    def set_genotype(self, genotype: Sequence[int] | np.ndarray) -> None:
        """Select the network that `forward` computes."""
        self.genotype = self.check_genotype(genotype)
        self._plan = self.plan([self.genotype])

    def forward(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] -> logits [B, C, ...] of the chosen network."""
        return self.logits(self._plan, images)[0]

    def plan(self, genotypes: Iterable[np.ndarray]) -> ExecutionPlan:
        """How to compute the networks of several genotypes in one pass."""
        return ExecutionPlan(self.graph, genotypes)

    def logits(
        self, plan: ExecutionPlan, images: Tensor, instead: Mapping[int, Callable[..., Any]] = MappingProxyType({})
    ) -> list[Tensor]:
        """uint8 [B, 3, H, W] -> logits [B, C, ...] of each genotype of a plan; `instead` computes the steps it has."""
        results = plan.run(self.compute, self.preprocess(images), instead)
        return [(outputs[0] if len(outputs) == 1 else self.ensemble(*outputs)).float() for outputs in results]

    @torch.no_grad()
    def features(self, images: Tensor) -> list[Tensor]:
        """uint8 [B, 3, H, W] -> the unmodified parents' values at the node of each gene, one pass of each."""
        untouched = np.zeros_like(self.genotype)
        operands = tuple(Operand(vertex) for vertex in self.joined)
        return ExecutionPlan(self.graph, [untouched], operands).run(self.compute, self.preprocess(images))[0]

    def compute(self, vertex: int, images: Tensor, values: Sequence[Any]) -> Any:
        """The value of a vertex from those that it reads; `images` are normalised for A."""
        side, content, *_ = self.graph.vertices[vertex]
        if isinstance(content, int):
            return self.stitches[content](*values)
        if content.op == "placeholder":
            if content is not self.parents[side].input:
                return content.args[0]  # an argument with a default, such as a mask of attention
            return self.renormalise(images) if side else images
        net, target = self.nets[side], cast(Any, content.target)
        if content.op == "get_attr":
            owner, _, name = target.rpartition(".")
            return getattr(net.get_submodule(owner), name)
        given = dict(zip(content.all_input_nodes, values, strict=True))
        args, kwargs = map_arg((content.args, content.kwargs), given.__getitem__)
        if content.op == "call_module":
            return net.get_submodule(target)(*args, **kwargs)
        if content.op == "call_method":
            return getattr(args[0], target)(*args[1:], **kwargs)
        return target(*args, **kwargs)
