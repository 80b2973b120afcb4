"""A network as a graph: traced once, then copied and edited, or cut at any node."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx import Node

from recombine.core.errors import ConfigError
from recombine.models.blocks import Block, ancestors, find_blocks
from recombine.models.functionalize import without_effects
from recombine.models.model import Model, unwrap

__all__ = ["Traced", "frontier", "input_channels", "segment", "trace", "traced"]

CONTAINERS = (nn.Module, nn.Sequential, nn.ModuleList, nn.ModuleDict)


class Traced:
    """A network, its graph (nodes carry `meta["shape"]` for one image) and its blocks from input to output."""

    def __init__(self, net: nn.Module, graph: fx.Graph) -> None:
        self.net, self.graph = net, graph
        self.blocks = find_blocks(net, graph)

    @cached_property
    def head(self) -> str:
        """Name of the classifier: the layer whose values are, without any more weights, the output [B, C].

        Raises ConfigError if there is none: replacing another layer would destroy the network unseen.
        """
        node = next(node for node in self.graph.nodes if node.op == "output")
        flat = isinstance(node.args[0], Node) and len(node.args[0].meta.get("shape", ())) == 2
        while len(node.all_input_nodes) == 1:
            (node,) = node.all_input_nodes
            layer = self.net.get_submodule(node.target) if node.op == "call_module" else None
            if isinstance(layer, nn.Linear | nn.Conv2d) and flat:
                return node.target
            if layer is not None and layer.state_dict():
                break
        raise ConfigError(
            f"{type(self.net).__name__} has no classifier: its output is not [images, classes], straight from a linear "
            f"layer or convolution; create it with num_classes=<number of classes> and without features_only, or patch "
            f"it without a classifier: classes=0"
        )

    def share_behind(self, node: Node) -> float:
        """The part of the network's weights, 0 to 1, in layers that are called after a node."""
        order = {each: place for place, each in enumerate(self.graph.nodes)}
        sizes = {
            layer: sum(p.numel() for p in self.net.get_submodule(str(layer.target)).parameters())
            for layer in order
            if layer.op == "call_module"
        }
        behind = sum(size for layer, size in sizes.items() if order[layer] > order[node])
        return behind / max(1, sum(sizes.values()))

    def blocks_named(self, names: Sequence[str]) -> tuple[Block, ...]:
        """The blocks of these names, from input to output; ConfigError if the network has not all of them."""
        known = {block.name: block for block in self.last_blocks()}
        if unknown := [name for name in names if name not in known]:
            raise ConfigError(
                f"{type(self.net).__name__} has no block {', '.join(unknown)}; its blocks are {', '.join(known)}"
            )
        return tuple(block for name, block in known.items() if name in names)

    def last_blocks(self, count: int | None = None) -> tuple[Block, ...]:
        """The last `count` blocks (None: all); ConfigError if the network has none, or fewer."""
        name = type(self.net).__name__
        if not self.blocks:
            raise ConfigError(
                f"{name} has no block: there is neither a residual sum nor a growing concatenation of feature maps in "
                f"it; choose a residual or densely connected network, such as a ResNet, ConvNeXt or DenseNet, or a "
                f"patch that needs no blocks: method=lora"
            )
        if count is not None and not 1 <= count <= len(self.blocks):
            found = ", ".join(block.name for block in self.blocks)
            raise ConfigError(f"{count} blocks were asked for, but {name} has {len(self.blocks)}: {found}")
        return self.blocks if count is None else self.blocks[-count:]

    def copy(self, prefix: str = "") -> tuple[fx.Graph, dict[Node, Node]]:
        """A graph to edit, its modules under `prefix`, and the new node of each old one (the output node left out)."""
        graph = fx.Graph()
        new: dict[Node, Node] = {}
        output = graph.graph_copy(self.graph, new)
        for node in graph.nodes:
            if node.op in ("call_module", "get_attr"):
                node.target = prefix + node.target
        graph.output(output)
        for old, node in new.items():
            node.meta = dict(old.meta)
        return graph, new

    def node(self, module: str) -> Node:
        """The one call of the module of that name; ConfigError if there is none or several."""
        nodes = [node for node in self.graph.nodes if node.op == "call_module" and node.target == module]
        if len(nodes) != 1:
            raise ConfigError(f"{type(self.net).__name__} calls its module {module} {len(nodes)} times, not once")
        return nodes[0]


def trace(net: nn.Module, size: int, *, operations: bool = False) -> Traced:
    """The graph of `net` in eval mode on float images [B, C, size, size]; ConfigError if it cannot be traced.

    C is what the first convolution takes.
    `operations`: layers made of other operations, such as timm's norm with an activation inside, are opened, and no
    operation is in place (which clears the flag `inplace` of layers).
    """
    net = unwrap(net)
    modes = {module: module.training for module in net.modules()}
    tracer = _Tracer(operations)
    try:
        net.eval()
        graph = tracer.trace(net, _defaults(net))
        if operations:
            without_effects(net, graph)
        module = fx.GraphModule(net, graph)
        module.graph.eliminate_dead_code()
        like = next(net.parameters())
        with torch.no_grad():
            image = torch.zeros(1, input_channels(net), size, size, device=like.device, dtype=like.dtype)
            _Recorder(module).run(image)
    except UNTRACEABLE as error:
        place = getattr(error, "node", None) or next(reversed(tracer.graph.nodes), None)
        reason = str(error).partition("\n")[0].partition(". ")[0]
        told = f"{type(net).__name__} cannot be traced at {size} pixels"
        raise ConfigError(f"{told}: {reason} (at its operation {place})") from error
    finally:
        for part, training in modes.items():
            part.training = training
    return Traced(net, module.graph)


def _defaults(net: nn.Module) -> dict[str, Any]:
    """What a network takes beside its images, as timm's transformers take a mask of attention, left at its default."""
    _, *others = inspect.signature(net.forward).parameters.values()
    return {each.name: each.default for each in others if each.default is not each.empty}


def input_channels(net: nn.Module) -> int:
    """Channels of the images that a network takes: those of its first convolution, 3 if it has none."""
    return next((module.in_channels for module in net.modules() if isinstance(module, nn.Conv2d)), 3)


def traced(model: nn.Module, size: int | None = None) -> Traced:
    """The graph of a `Model`, or of a plain network at `size` pixels (timm's own default if it has one).

    Of a network that torch.compile or DataParallel wraps it is that of the network inside.
    """
    model = unwrap(model)
    if isinstance(model, Model):
        return trace(model.net, model.size)
    default = (getattr(model, "default_cfg", None) or {}).get("input_size", (3, 224, 224))[-1]
    return trace(model, size or default)


def segment(root: nn.Module, graph: fx.Graph, inputs: Sequence[Node], outputs: Any) -> fx.GraphModule:
    """The part of `graph` that computes `outputs` from `inputs`; shares the modules of `root`.

    A sequence of nodes gives a tuple, a node its value, and dicts and lists of nodes the same of their values.
    Raises ConfigError if an output needs anything but these inputs.
    """
    found: list[Node] = []
    fx.node.map_arg(outputs, found.append)
    part, new = fx.Graph(), {}
    for position, node in enumerate(inputs):
        new[node] = part.placeholder(f"input{position}")
    needed = ancestors(found, stop=inputs)
    for node in graph.nodes:
        if node in needed and node not in new:
            if node.op == "placeholder":
                raise ConfigError(f"{', '.join(map(str, found))} cannot be computed from {', '.join(map(str, inputs))}")
            new[node] = part.node_copy(node, lambda used: new[used])
    result = fx.node.map_arg(outputs, new.__getitem__)
    part.output(tuple(result) if type(outputs) is list else result)
    return fx.GraphModule(root, part)


def frontier(graph: fx.Graph, live: Collection[Node]) -> list[Node]:
    """The nodes outside `live` whose values are used in it, in order; constants (parameters) left out.

    `live` has to hold whatever depends on one of its nodes. With the values of the frontier, the rest of the graph
    need not be computed again.
    """
    constant = _constants(graph)
    used = {source for node in live for source in node.all_input_nodes}
    return [node for node in graph.nodes if node in used and node not in live and node not in constant]


UNTRACEABLE = (fx.proxy.TraceError, TypeError, RuntimeError, ValueError, AttributeError, IndexError, AssertionError)


class _Tracer(fx.Tracer):
    """Goes into blocks but not into layers, nor into modules whose control flow depends on the data."""

    def __init__(self, operations: bool = False) -> None:
        super().__init__()
        self.operations = operations

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        if self.operations:
            return super().is_leaf_module(module, name)
        layer = any(c.__module__.startswith("torch.nn") and c not in CONTAINERS for c in type(module).__mro__)
        return layer or not list(module.children())

    def call_module(self, module: nn.Module, forward, args: tuple, kwargs: dict):
        entered, recorded = len(self.module_stack), len(self.graph.nodes)
        try:
            return super().call_module(module, forward, args, kwargs)
        except UNTRACEABLE:
            while len(self.module_stack) > entered:  # fx leaves what raised, and what was open in it, on its stack
                self.module_stack.popitem()
            for node in list(reversed(self.graph.nodes))[: len(self.graph.nodes) - recorded]:
                self.graph.erase_node(node)
            return self.create_proxy("call_module", self.path_of_module(module), args, kwargs)


class _Recorder(fx.Interpreter):
    """Notes the shape of every value, and which nodes return their input unchanged (Identity, dropout in eval)."""

    def run_node(self, node: Node):
        sources = [self.env[source] for source in node.all_input_nodes]
        before = [(value, value._version) for value in sources if isinstance(value, Tensor)]
        try:
            result = super().run_node(node)
        except UNTRACEABLE as error:
            error.node = node  # type: ignore[union-attr]
            raise
        if isinstance(result, Tensor):
            node.meta["shape"] = tuple(result.shape)
            node.meta["floating"] = result.is_floating_point()
            node.meta["identity"] = any(result is value and value._version == version for value, version in before)
        return result


def _constants(graph: fx.Graph) -> set[Node]:
    """Nodes that depend on no input: parameters, and what is computed from them alone."""
    constant: set[Node] = set()
    for node in graph.nodes:
        if node.op not in ("placeholder", "output") and constant.issuperset(node.all_input_nodes):
            constant.add(node)
    return constant
