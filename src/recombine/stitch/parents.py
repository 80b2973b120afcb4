"""A trained network as a graph of single operations, without effects in place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch.fx import Node
from torch.fx.node import map_arg

from recombine.core.errors import ConfigError
from recombine.models import Model
from recombine.models.blocks import ADDITIONS, ancestors
from recombine.models.graph import trace
from recombine.stitch.axes import find_layouts

__all__ = ["Parent", "logits_of"]


def logits_of(answer: Any) -> Any:
    """The logits among what a network gives: segmentation networks give dicts, with others for training."""
    return answer.get("out") if isinstance(answer, Mapping) else answer


class Parent:
    """A frozen copy of a model, its graph, and the nodes whose values can be passed to another network."""

    def __init__(self, model: Model, granularity: str = "op") -> None:
        """`granularity`: op takes every operation's value (the paper), block the ends of residual and dense blocks.

        Raises ConfigError for networks that cannot be traced, whose graph computes something else than they do, or
        that give no logits of images or pixels.
        """
        self.model, self.name = model, model.name
        self.net = deepcopy(model.net).eval().requires_grad_(False)
        self.traced = trace(self.net, model.size, operations=True)
        self.graph = self.traced.graph
        self.input = next(node for node in self.graph.nodes if node.op == "placeholder")
        given = next(node for node in self.graph.nodes if node.op == "output").args[0]
        self.outputs: list[Node] = []
        """All values that the network gives: the logits, and what it is trained with beside them."""
        map_arg(given, self.outputs.append)
        self.output = logits_of(given)
        self._check_logits()
        self._layouts = find_layouts(self.graph, dict(self.net.named_modules()))
        self._check_graph()
        self.ends = self._block_ends()
        """The ends of residual and dense blocks, and of the parts of these."""
        self.nodes = tuple(self._candidates(granularity))
        """The nodes that may be joined with nodes of another parent, in the order of their execution."""

    @property
    def dense(self) -> bool:
        """Whether it gives logits of every pixel."""
        return len(self.output.meta["shape"]) == 4

    def _check_logits(self) -> None:
        """They have to be of images, or of the pixels of images of this size."""
        shape: tuple[int, ...] = self.output.meta.get("shape", ()) if isinstance(self.output, Node) else ()
        if len(shape) == 4 and shape[2:] != (self.model.size, self.model.size):
            raise ConfigError(
                f"{self.name} gives maps of {shape[2]} x {shape[3]} px for images of {self.model.size}; a network that "
                f"labels pixels has to resize its logits to its images"
            )
        if len(shape) not in (2, 4):
            raise ConfigError(
                f"{self.name} gives no logits [images, classes] or [images, classes, height, width], alone or as 'out' "
                f"of a dict; choose a network that labels images or their pixels"
            )

    def _check_graph(self) -> None:
        """The graph has to compute what the network computes."""
        like = next(self.net.parameters())
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.default_generator.manual_seed(0)
            images = torch.randn(2, 3, self.model.size, self.model.size).to(like)
            logits = logits_of(torch.fx.GraphModule(self.net, self.graph)(images))
            if not torch.equal(logits, logits_of(deepcopy(self.model.net).eval()(images))):
                raise ConfigError(
                    f"{self.name} computes in a way that its graph does not show (values changed in place behind "
                    f"views, or randomness); it cannot be stitched"
                )

    def _candidates(self, granularity: str) -> list[Node]:
        depends_on_images = {self.input}
        for node in self.graph.nodes:
            if depends_on_images.intersection(node.all_input_nodes):
                depends_on_images.add(node)
        required = ancestors(self.outputs)
        return [
            node
            for node in self.graph.nodes
            if node in depends_on_images & required
            and node not in (self.input, *self.outputs)
            and node.op != "output"
            and (granularity == "op" or node in self.ends)
            and self.layout(node) is not None
        ]

    def _block_ends(self) -> set[Node]:
        ends = {block.output for block in self.traced.blocks} | {p.output for b in self.traced.blocks for p in b.parts}
        return ends | {node for node in self.graph.nodes if self._is_residual(node)}

    def _is_residual(self, node: Node) -> bool:
        """Whether a node adds tokens to what they were computed from: the end of attention or of its MLP.

        Or maps, in a network that labels pixels: its head adds maps of two sizes, and all blocks are between these.
        """
        layouts = ("BNC", "NHWC", "NCHW") if self.dense else ("BNC", "NHWC")
        if node.target not in ADDITIONS or self.layout(node) not in layouts:
            return False
        operands = [arg for arg in node.args if isinstance(arg, Node) and self.layout(arg) == self.layout(node)]
        return len(operands) == 2 and any(operands[k] in ancestors([operands[1 - k]]) for k in (0, 1))

    def layout(self, node: Node) -> str | None:
        """Layout of the value of a node: NCHW, NC, BNC (tokens) or NHWC; None if it cannot be stitched."""
        shape = node.meta.get("shape", ())
        return self._layouts.get(node) if shape and shape[0] == 1 and node.meta["floating"] else None

    def edges(self, nodes: Sequence[Node]) -> list[tuple[int, int]]:
        """Edges of the graph between `nodes`, by their positions; paths through other nodes count as edges."""
        number = {node: k for k, node in enumerate(nodes)}
        nearest: dict[Node, set[int]] = {}
        found = []
        for node in self.graph.nodes:
            above = set().union(*(nearest[source] for source in node.all_input_nodes))
            if node in number:
                found += [(source, number[node]) for source in sorted(above)]
                above = {number[node]}
            nearest[node] = above
        return found
