"""A network as a graph: its blocks and sub-blocks found by structure, and parts of it cut out at any node.

Nothing here goes by names. A sub-block is a sum whose two operands part at one earlier node and meet again (a
residual branch and its shortcut), or a step of a growing concatenation (a dense layer). A block is a chain of them.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor, fx, nn
from torch.fx import Node

from src.core.errors import ConfigError

__all__ = ["Block", "SubBlock", "Traced", "ancestors", "frontier", "segment", "trace"]

CONTAINERS = (nn.Module, nn.Sequential, nn.ModuleList, nn.ModuleDict)
ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")


@dataclass(frozen=True)
class SubBlock:
    """One residual branch with its shortcut, or one dense layer."""

    input: Node
    """Where branch and shortcut part; of a dense layer, its concatenation."""
    branch: Node
    """What the residual branch gives, before the shortcut is added; of a dense layer, its new channels."""
    shortcut: Node
    """What is added: `input` itself, or a projection of it."""
    join: Node
    """The sum, or the concatenation a dense layer starts with."""
    output: Node
    """`join` after its activation, if one follows; of a dense layer, its new channels."""

    @property
    def projected(self) -> bool:
        """Whether the shortcut is more than the identity."""
        return self.shortcut is not self.input


@dataclass(frozen=True)
class Block:
    """A chain of sub-blocks whose outputs have one shape (residual), or a growing concatenation (dense)."""

    name: str
    """Common part of the names of its modules, such as `layer4`."""
    input: Node
    output: Node
    parts: tuple[SubBlock, ...]
    dense: bool = False

    @property
    def channels(self) -> int:
        """Channels of the block's input."""
        return self.input.meta["shape"][1]

    @property
    def out_channels(self) -> int:
        """Channels of the block's output."""
        return self.output.meta["shape"][1]


class Traced:
    """A network, its graph (nodes carry `meta["shape"]` for one image) and its blocks from input to output."""

    def __init__(self, net: nn.Module, graph: fx.Graph) -> None:
        self.net, self.graph = net, graph
        self.blocks = _blocks(net, graph)

    def last_blocks(self, count: int | None = None) -> tuple[Block, ...]:
        """The last `count` blocks (None: all); ConfigError if the network has none, or fewer."""
        name = type(self.net).__name__
        if not self.blocks:
            raise ConfigError(
                f"{name} has no block: there is neither a residual sum nor a growing concatenation of feature maps in "
                f"it; choose a residual or densely connected network, such as a ResNet, ConvNeXt or DenseNet"
            )
        if count is not None and not 1 <= count <= len(self.blocks):
            found = ", ".join(block.name for block in self.blocks)
            raise ConfigError(f"{count} blocks were asked for, but {name} has {len(self.blocks)}: {found}")
        return self.blocks if count is None else self.blocks[-count:]

    def copy(self, prefix: str = "") -> tuple[fx.Graph, dict[Node, Node]]:
        """A graph to edit, its modules under `prefix`, and the new node of each old one (the output node left out)."""
        graph, new = fx.Graph(), {}
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


def trace(net: nn.Module, size: int) -> Traced:
    """The graph of `net` in eval mode on float images [B, 3, size, size]; ConfigError if it cannot be traced."""
    modes = {module: module.training for module in net.modules()}
    try:
        net.eval()
        graph = _Tracer().trace(net)
        graph.eliminate_dead_code()
        like = next(net.parameters())
        with torch.no_grad():
            image = torch.zeros(1, 3, size, size, device=like.device, dtype=like.dtype)
            _Recorder(fx.GraphModule(net, graph)).run(image)
    except UNTRACEABLE as error:
        raise ConfigError(f"{type(net).__name__} cannot be traced at {size} pixels: {error}") from error
    finally:
        for module, training in modes.items():
            module.training = training
    return Traced(net, graph)


def segment(root: nn.Module, graph: fx.Graph, inputs: Sequence[Node], outputs: Sequence[Node]) -> fx.GraphModule:
    """The part of `graph` that computes `outputs` (a tuple) from `inputs`; shares the modules of `root`.

    Raises ConfigError if an output needs anything but these inputs.
    """
    part, new = fx.Graph(), {}
    for position, node in enumerate(inputs):
        new[node] = part.placeholder(f"input{position}")
    needed = ancestors(outputs, stop=inputs)
    for node in graph.nodes:
        if node in needed and node not in new:
            if node.op == "placeholder":
                raise ConfigError(f"{', '.join(map(str, outputs))} cannot be computed from {', '.join(map(str, inputs))}")
            new[node] = part.node_copy(node, lambda used: new[used])
    part.output(tuple(new[node] for node in outputs))
    return fx.GraphModule(root, part)


def ancestors(nodes: Iterable[Node], stop: Collection[Node] = ()) -> set[Node]:
    """`nodes` and all they are computed from, not beyond `stop`."""
    found, open_ = set(), list(nodes)
    while open_:
        node = open_.pop()
        if node not in found:
            found.add(node)
            open_ += [] if node in stop else node.all_input_nodes
    return found


def frontier(graph: fx.Graph, live: Collection[Node]) -> list[Node]:
    """The nodes outside `live` whose values are used in it, in order; constants (parameters) left out.

    `live` has to hold whatever depends on one of its nodes. With the values of the frontier, the rest of the graph
    need not be computed again.
    """
    constant = _constants(graph)
    used = {source for node in live for source in node.all_input_nodes}
    return [node for node in graph.nodes if node in used and node not in live and node not in constant]


UNTRACEABLE = (fx.proxy.TraceError, TypeError, RuntimeError, ValueError, AttributeError, IndexError)


class _Tracer(fx.Tracer):
    """Goes into blocks but not into layers, nor into modules whose control flow depends on the data."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        layer = any(c.__module__.startswith("torch.nn") and c not in CONTAINERS for c in type(module).__mro__)
        return layer or not list(module.children())

    def call_module(self, module: nn.Module, forward, args: tuple, kwargs: dict):
        try:
            return super().call_module(module, forward, args, kwargs)
        except UNTRACEABLE:
            return self.create_proxy("call_module", self.path_of_module(module), args, kwargs)


class _Recorder(fx.Interpreter):
    """Notes the shape of every value, and which nodes hand on their input as it is (Identity, dropout in eval)."""

    def run_node(self, node: Node):
        sources = [self.env[source] for source in node.all_input_nodes]
        before = [(value, value._version) for value in sources if isinstance(value, Tensor)]
        result = super().run_node(node)
        if isinstance(result, Tensor):
            node.meta["shape"] = tuple(result.shape)
            node.meta["identity"] = any(result is value and value._version == version for value, version in before)
        return result


def _constants(graph: fx.Graph) -> set[Node]:
    """Nodes that depend on no input: parameters, and what is computed from them alone."""
    constant: set[Node] = set()
    for node in graph.nodes:
        if node.op not in ("placeholder", "output") and constant.issuperset(node.all_input_nodes):
            constant.add(node)
    return constant


def _dominators(graph: fx.Graph) -> tuple[dict[Node, Node], dict[Node, int]]:
    """For each node the last node that all its paths from the input pass, and its depth in the tree of these."""
    above: dict[Node, Node] = {}
    depth: dict[Node, int] = {}

    def meet(a: Node, b: Node) -> Node:
        while a is not b:
            a, b = (above[a], b) if depth[a] >= depth[b] else (a, above[b])
        return a

    for node in graph.nodes:
        sources = [source for source in node.all_input_nodes if source in depth]
        if node.op == "placeholder":
            above[node], depth[node] = node, 0
        elif sources:
            above[node] = reduce(meet, sources)
            depth[node] = depth[above[node]] + 1
    return above, depth


def _blocks(net: nn.Module, graph: fx.Graph) -> tuple[Block, ...]:
    order = {node: position for position, node in enumerate(graph.nodes)}
    modules = dict(net.named_modules())
    above, _ = _dominators(graph)
    found = [sub for node in graph.nodes if (sub := _residual(node, above, modules)) is not None]
    outer = [s for s in found if not any(order[t.input] <= order[s.input] and s.join in _inside(t) for t in found)]
    chains: list[list[SubBlock]] = []
    for sub in outer:
        goes_on = chains and not sub.projected and sub.input is chains[-1][-1].output
        chains[-1].append(sub) if goes_on else chains.append([sub])
    blocks = [Block(_name(graph, c[0].input, c[-1].output), c[0].input, c[-1].output, tuple(c)) for c in chains]
    return tuple(sorted([*blocks, *_dense_blocks(graph)], key=lambda block: order[block.output]))


def _inside(sub: SubBlock) -> set[Node]:
    """The nodes between where a sub-block starts and its sum."""
    return ancestors([sub.join], stop=[sub.input]) - {sub.join, sub.input}


def _origin(node: Node) -> Node:
    """The node whose value `node` hands on."""
    while node.meta.get("identity") and node.op != "placeholder":
        node = node.all_input_nodes[0]
    return node


def _residual(node: Node, above: dict[Node, Node], modules: dict[str, nn.Module]) -> SubBlock | None:
    """The sub-block that ends in the sum `node`, if it is one of two feature maps with a common origin."""
    operands = [a for a in node.args if isinstance(a, Node) and a in above]
    if node.target not in ADDITIONS or len(operands) != 2 or len(node.meta.get("shape", ())) != 4:
        return None
    start = above[node]
    if len(start.meta.get("shape", ())) != 4 or any(a.meta.get("shape") != node.meta["shape"] for a in operands):
        return None
    lengths = [0 if _origin(a) is _origin(start) else len(ancestors([a], stop=[start])) for a in operands]
    short = 0 if lengths[0] < lengths[1] else 1
    shortcut = start if lengths[short] == 0 else operands[short]
    return SubBlock(start, operands[1 - short], shortcut, node, _activated(node, modules))


def _activated(node: Node, modules: dict[str, nn.Module]) -> Node:
    """`node` after the activation that follows it alone: without parameters, and of the same shape."""
    while len(node.users) == 1:
        (user,) = node.users
        bare = user.op != "call_module" or not list(modules[user.target].state_dict())
        if not bare or user.op == "output" or user.meta.get("shape") != node.meta["shape"]:
            break
        if len(user.all_input_nodes) != 1:
            break
        node = user
    return node


def _dense_blocks(graph: fx.Graph) -> list[Block]:
    """Chains of concatenations that each take what the one before took and one feature map more."""
    joins = [node for node in graph.nodes if node.target is torch.cat and len(node.meta.get("shape", ())) == 4]
    chains: list[list[Node]] = []
    for join in joins:
        sources = list(join.args[0])
        chain = next((c for c in chains if list(c[-1].args[0]) == sources[:-1]), None)
        chain.append(join) if chain else chains.append([join])
    blocks = []
    for chain in chains:
        sources = list(chain[-1].args[0])
        if len(chain) == len(sources) > 1:
            pairs = zip(chain[:-1], sources[1:], strict=True)
            parts = tuple(SubBlock(join, new, join, join, new) for join, new in pairs)
            blocks.append(Block(_name(graph, sources[0], chain[-1]), sources[0], chain[-1], parts, dense=True))
    return blocks


def _name(graph: fx.Graph, start: Node, end: Node) -> str:
    inside = ancestors([end], stop=[start]) - {start}
    paths = [node.target.split(".") for node in graph.nodes if node in inside and node.op == "call_module"]
    common = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    return ".".join(common) or f"{start.name}-{end.name}"
