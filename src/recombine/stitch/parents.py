"""A trained network as a graph of single operations, without effects in place."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy

import torch
from torch.fx import Node

from recombine.core.errors import ConfigError
from recombine.models import Model, build
from recombine.models.blocks import ancestors, channels_last
from recombine.models.graph import trace
from recombine.run.config import DictConfig
from recombine.run.run import Run

__all__ = ["Parent", "load_parents", "preprocessing_differences"]


class Parent:
    """A frozen copy of a model, its graph, and the nodes whose values can be passed to another network."""

    def __init__(self, model: Model, granularity: str = "op") -> None:
        """`granularity`: op takes every operation's value (the paper), block the ends of residual or dense blocks.

        Raises ConfigError for networks that cannot be traced, whose graph computes something else than they do, or
        whose output is not a single tensor.
        """
        self.model, self.name = model, model.name
        self.net = deepcopy(model.net).eval().requires_grad_(False)
        self.traced = trace(self.net, model.size, operations=True)
        self.graph = self.traced.graph
        self.input = next(node for node in self.graph.nodes if node.op == "placeholder")
        self.output = next(node for node in self.graph.nodes if node.op == "output").args[0]
        if not isinstance(self.output, Node) or len(self.output.meta.get("shape", ())) != 2:
            raise ConfigError(f"{self.name} gives no single tensor of logits [images, classes]; choose a classifier")
        self._modules = dict(self.net.named_modules())
        self._check_graph()
        self.nodes = tuple(self._candidates(granularity))
        """The nodes that may be joined with nodes of another parent, in the order of their execution."""

    def _check_graph(self) -> None:
        """The graph has to compute what the network computes."""
        like = next(self.net.parameters())
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.default_generator.manual_seed(0)
            images = torch.randn(2, 3, self.model.size, self.model.size).to(like)
            logits = torch.fx.GraphModule(self.net, self.graph)(images)
            if not torch.equal(logits, deepcopy(self.model.net).eval()(images)):
                raise ConfigError(
                    f"{self.name} computes in a way that its graph does not show (values changed in place behind "
                    f"views, or randomness); it cannot be stitched"
                )

    def _candidates(self, granularity: str) -> list[Node]:
        depends_on_images = {self.input}
        for node in self.graph.nodes:
            if depends_on_images.intersection(node.all_input_nodes):
                depends_on_images.add(node)
        required = ancestors([self.output])
        ends = {block.output for block in self.traced.blocks} | {p.output for b in self.traced.blocks for p in b.parts}
        return [
            node
            for node in self.graph.nodes
            if node in depends_on_images & required
            and node not in (self.input, self.output)
            and node.op != "output"
            and (granularity == "op" or node in ends)
            and self.layout(node) is not None
        ]

    def layout(self, node: Node) -> str | None:
        """Layout of the value of a node: NCHW, NC, BNC (tokens) or NHWC; None if it cannot be stitched."""
        shape = node.meta.get("shape", ())
        if not 2 <= len(shape) <= 4 or shape[0] != 1 or not node.meta["floating"]:
            return None
        if len(shape) == 4:
            return "NHWC" if channels_last(node, self._modules) else "NCHW"
        return {2: "NC", 3: "BNC"}[len(shape)]

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


def load_parents(cfg: DictConfig, run: Run) -> tuple[Model, Model]:
    """Both parents, frozen and in eval mode.

    ConfigError if they are one network, or do not see the same pixels.
    """
    a, b = (
        build(node, weights_root=cfg.weights_root, seed=run.seed).to(run.device).eval().requires_grad_(False)
        for node in (cfg.a, cfg.b)
    )
    if problems := preprocessing_differences(a, b):
        raise ConfigError(problems)
    if a.digest() == b.digest():
        raise ConfigError("a and b are the same network; offspring need two, such as b=resnet32")
    return a, b


def preprocessing_differences(a: Model, b: Model) -> list[str]:
    """Why two parents do not see the same pixels: size, crop and resizing have to be equal, normalisation has not.

    Deviation: the authors give both parents one normalisation too; here each keeps its own, so that it scores as it
    does alone.
    """
    first, second = a.preprocess.settings(), b.preprocess.settings()
    return [
        f"the parents see different pixels: {key} is {first[key]} for {a.name} and {second[key]} for {b.name}; set "
        f"a.{key}={second[key]} or b.{key}={first[key]}"
        for key in ("size", "crop_pct", "interpolation")
        if first[key] != second[key]
    ]
