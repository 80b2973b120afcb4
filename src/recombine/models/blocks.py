"""Blocks and sub-blocks of a traced network, found by structure.

Nothing here goes by names. A sub-block is a sum whose two operands part at one earlier node and meet again (a
residual branch and its shortcut), or a step of a growing concatenation (a dense layer). A block is a chain of them.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import reduce

import torch
from torch import fx, nn
from torch.fx import Node

__all__ = ["Block", "SubBlock", "ancestors", "channels_last", "dominators", "find_blocks"]

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


def ancestors(nodes: Iterable[Node], stop: Collection[Node] = ()) -> set[Node]:
    """`nodes` and all they are computed from, not beyond `stop`."""
    found, open_ = set(), list(nodes)
    while open_:
        node = open_.pop()
        if node not in found:
            found.add(node)
            open_ += [] if node in stop else node.all_input_nodes
    return found


def dominators(graph: fx.Graph) -> tuple[dict[Node, Node], dict[Node, int]]:
    """For each node the last node that all its paths from the input pass, and its depth in the tree of these."""
    above: dict[Node, Node] = {}
    depth: dict[Node, int] = {}

    def meet(a: Node, b: Node) -> Node:
        while a is not b:
            a, b = (above[a], b) if depth[a] >= depth[b] else (a, above[b])
        return a

    for node in graph.nodes:
        sources = [source for source in node.all_input_nodes if source in depth]
        if node.op == "placeholder" and not depth:  # the images; further arguments have defaults
            above[node], depth[node] = node, 0
        elif sources:
            above[node] = reduce(meet, sources)
            depth[node] = depth[above[node]] + 1
    return above, depth


def find_blocks(net: nn.Module, graph: fx.Graph) -> tuple[Block, ...]:
    """From input to output; `graph` has gone through `graph.trace`, which notes the shapes."""
    order = {node: position for position, node in enumerate(graph.nodes)}
    modules = dict(net.named_modules())
    above, _ = dominators(graph)
    found = [sub for node in graph.nodes if (sub := _residual(node, above, modules)) is not None]
    outer = [s for s in found if not any(order[t.input] <= order[s.input] and s.join in _inside(t) for t in found)]
    chains: list[list[SubBlock]] = []
    for sub in outer:
        goes_on = chains and not sub.projected and sub.input is chains[-1][-1].output
        chains[-1].append(sub) if goes_on else chains.append([sub])
    blocks = [Block(_name(graph, c[0].input, c[-1].join), c[0].input, c[-1].output, tuple(c)) for c in chains]
    blocks = sorted([*blocks, *_dense_blocks(graph)], key=lambda block: order[block.output])
    names = [block.name for block in blocks]
    return tuple(
        replace(block, name=_name(graph, block.input, block.parts[-1].join, span=True))
        if names.count(block.name) > 1
        else block
        for block in blocks
    )


def _inside(sub: SubBlock) -> set[Node]:
    """The nodes between where a sub-block starts and its sum."""
    return ancestors([sub.join], stop=[sub.input]) - {sub.join, sub.input}


def _origin(node: Node) -> Node:
    """The node whose value `node` returns unchanged."""
    while node.meta.get("identity") and node.op != "placeholder":
        node = node.all_input_nodes[0]
    return node


def _residual(node: Node, above: dict[Node, Node], modules: dict[str, nn.Module]) -> SubBlock | None:
    """The sub-block that ends in the sum `node`, if it is one of two feature maps [B, C, H, W] with a common origin."""
    operands = [a for a in node.args if isinstance(a, Node) and a in above]
    if node.target not in ADDITIONS or len(operands) != 2 or len(node.meta.get("shape", ())) != 4:
        return None
    start = above[node]
    if len(start.meta.get("shape", ())) != 4 or any(a.meta.get("shape") != node.meta["shape"] for a in operands):
        return None
    lengths = [0 if _origin(a) is _origin(start) else len(ancestors([a], stop=[start])) for a in operands]
    short = 0 if lengths[0] < lengths[1] else 1
    shortcut, branch = start if lengths[short] == 0 else operands[short], operands[1 - short]
    if channels_last(branch, modules):
        return None
    return SubBlock(start, branch, shortcut, node, _activated(node, modules))


WIDTHS = ("out_channels", "num_features", "out_features", "normalized_shape")


def channels_last(value: Node, modules: dict[str, nn.Module]) -> bool:
    """Whether a value of four axes is [B, H, W, C]: its last axis is as wide as the layer it comes from.

    That layer is the nearest one before it which has a width. Where the second axis is as wide too, a layer of the
    last axis decides, if no axes are moved between.
    """
    shape, seen, waiting, moved = value.meta["shape"], {value}, [value], False
    while waiting:
        node = waiting.pop(0)
        layer = modules[str(node.target)] if node.op == "call_module" else None
        width = next((getattr(layer, key) for key in WIDTHS if hasattr(layer, key)), None)
        if width is not None:
            width = width[-1] if isinstance(width, Sequence) else width
            last = type(layer) in (nn.Linear, nn.LayerNorm) and not moved
            return width == shape[-1] and (width != shape[1] or last)
        operation = (type(layer).__name__ if layer is not None else str(node.target)).lower()
        moved = moved or "permute" in operation or "transpose" in operation
        fresh = [source for source in node.all_input_nodes if source not in seen]
        seen.update(fresh)
        waiting += fresh
    return False


def _activated(node: Node, modules: dict[str, nn.Module]) -> Node:
    """`node` after the activation that follows it alone: without parameters, and of the same shape."""
    while len(node.users) == 1:
        (user,) = node.users
        bare = user.op != "call_module" or not list(modules[str(user.target)].state_dict())
        if not bare or user.op == "output" or user.meta.get("shape") != node.meta["shape"]:
            break
        if len(user.all_input_nodes) != 1:
            break
        node = user
    return node


def _joined(join: Node) -> list[Node]:
    """What a concatenation is made of, in its order."""
    return list(join.args[0])  # type: ignore[arg-type]


def _dense_blocks(graph: fx.Graph) -> list[Block]:
    """Chains of concatenations that each take what the one before took and one feature map more."""
    joins = [node for node in graph.nodes if node.target is torch.cat and len(node.meta.get("shape", ())) == 4]
    chains: list[list[Node]] = []
    for join in joins:
        sources = _joined(join)
        chain = next((c for c in chains if _joined(c[-1]) == sources[:-1]), None)
        chain.append(join) if chain else chains.append([join])
    blocks = []
    for chain in chains:
        sources = _joined(chain[-1])
        if len(chain) == len(sources) > 1:
            pairs = zip(chain[:-1], sources[1:], strict=True)
            parts = tuple(SubBlock(join, new, join, join, new) for join, new in pairs)
            blocks.append(Block(_name(graph, sources[0], chain[-1]), sources[0], chain[-1], parts, dense=True))
    return blocks


def _name(graph: fx.Graph, start: Node, end: Node, *, span: bool = False) -> str:
    """What the names of the modules between two nodes have in common; with `span` also where they begin and end."""
    inside = ancestors([end], stop=[start]) - {start}
    paths = [node.target.split(".") for node in graph.nodes if node in inside and node.op == "call_module"]
    common = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            common += [f"{parts[0]}-{parts[-1]}"] if span else []
            break
        common.append(parts[0])
    return ".".join(common) or f"{start.name}-{end.name}"
