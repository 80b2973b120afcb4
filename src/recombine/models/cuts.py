"""Where a network may be cut in two with one tensor crossing: the positions of Partial Network Cloning.

Everything is found in the traced graph. A neck is a value that every path from the images to the classifier passes.
Maps are taken for [B, C, H, W]; in networks that keep the channels last a shape can have C in the wrong axis.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import nn
from torch.fx import Node

from recombine.core.errors import ConfigError
from recombine.models.blocks import ancestors, channels_last, dominators
from recombine.models.graph import Traced

__all__ = ["Cut", "cuts", "depthwise"]


@dataclass(frozen=True)
class Cut:
    """One position R of a network: the value that alone crosses from its lower to its upper part."""

    name: str
    """`stem`, the name of the block that ends here, `features` for the last, else the path of the last layer before."""
    node: Node
    """The value, a node of the traced graph."""
    shape: tuple[int, ...]
    """(C, H, W) of a map or (C,) of a flat vector, for one image."""
    factor: float
    """Side of the images / H; infinite for flat features and maps of one pixel."""


def cuts(traced: Traced) -> tuple[Cut, ...]:
    """The positions R = 1..L from input to output; the last is what enters the classifier.

    Of the necks that stand directly before a layer, or at the end of a block, the last of each shape is a cut; if none
    lies before the first block, the input of that block is one too. Layers are modules with a weight matrix or kernel,
    but for depth-wise convolutions, which go with what is before them, as norms, activations and pooling do. A map that
    the next layer narrows at the same resolution is the inside of a bottleneck and no cut. Where a flattening unrolls a
    map for a layer other than the classifier, the cut is the map.

    Raises ConfigError if there is no classifier, or no single tensor [C] or [C, H, W] made by a layer that enters it.
    """
    layers = _layers(traced)
    necks = _necks(traced, layers)
    order = {node: position for position, node in enumerate(traced.graph.nodes)}
    found = {_shape(node): node for node in _stage_ends(traced, necks, layers)}
    nodes = set(found.values())
    if traced.blocks:
        first = traced.blocks[0].input
        if first in necks and all(order[node] > order[first] for node in nodes):
            nodes.add(first)
    side = next(node for node in traced.graph.nodes if node.op == "placeholder").meta["shape"][-1]
    return tuple(
        Cut(_name(traced, node, necks, layers), node, _shape(node), _factor(side, _shape(node)))
        for node in sorted(nodes, key=order.__getitem__)
    )


def depthwise(module: nn.Module) -> bool:
    """Whether a module is a convolution that makes each output channel from the one input channel of the same place."""
    return isinstance(module, nn.Conv2d) and module.groups == module.in_channels == module.out_channels > 1


def _shape(node: Node) -> tuple[int, ...]:
    return tuple(node.meta["shape"][1:])


def _factor(side: int, shape: tuple[int, ...]) -> float:
    return side / shape[1] if len(shape) == 3 and shape[1] > 1 else float("inf")


def _layers(traced: Traced) -> set[Node]:
    """The calls of modules with a weight matrix or kernel, depth-wise convolutions left out."""
    modules = dict(traced.net.named_modules())
    calls = [node for node in traced.graph.nodes if node.op == "call_module"]
    return {
        node
        for node in calls
        if not depthwise(modules[node.target]) and any(p.ndim > 1 for p in modules[node.target].parameters())
    }


def _necks(traced: Traced, layers: set[Node]) -> list[Node]:
    """The flat vectors and feature maps [C, H, W] made by a layer that all paths to the classifier pass, in order."""
    modules = dict(traced.net.named_modules())
    above, _ = dominators(traced.graph)
    head = traced.node(traced.head)
    chain = [above[head]]
    while above[chain[-1]] is not chain[-1]:
        chain.append(above[chain[-1]])
    necks = [node for node in reversed(chain) if _is_features(node, modules) and ancestors([node]) & layers]
    if not necks or necks[-1] is not chain[0]:
        raise ConfigError(
            f"{type(traced.net).__name__} cannot be cut in two: what enters its classifier is no vector of features or "
            f"feature map [channels, height, width] that a layer has made; choose a convolutional network"
        )
    return necks


def _is_features(node: Node, modules: dict[str, nn.Module]) -> bool:
    axes = len(node.meta.get("shape", ()))
    return axes == 2 or (axes == 4 and not channels_last(node, modules))


def _stage_ends(traced: Traced, necks: list[Node], layers: set[Node]) -> list[Node]:
    """The necks directly before a layer or at the end of a block, without the insides of bottlenecks, in order."""
    outputs = {block.output for block in traced.blocks}
    behind = [*necks[1:], traced.node(traced.head)]
    ends = [
        node if after is behind[-1] else _rolled(node, necks, layers)
        for node, after in zip(necks, behind, strict=True)
        if node in outputs or _between(node, after) & layers
    ]
    return [
        node for node, after in zip(ends, [*ends[1:], None], strict=True) if after is None or not _narrows(node, after)
    ]


def _between(start: Node, end: Node) -> set[Node]:
    """What is computed from `start` on the way to `end`, and `end`."""
    return ancestors([end], stop=[start]) - {start}


def _rolled(node: Node, necks: list[Node], layers: set[Node]) -> Node:
    """The map of more than one pixel that a flat neck unrolls, or the neck itself."""
    before = necks[: necks.index(node)] if len(_shape(node)) == 1 else []
    for neck in reversed(before):
        if _between(neck, node) & layers:
            break
        if len(_shape(neck)) == 3 and _shape(neck)[1] > 1 and math.prod(_shape(neck)) == _shape(node)[0]:
            return neck
    return node


def _narrows(node: Node, after: Node) -> bool:
    shape, next_shape = _shape(node), _shape(after)
    return len(shape) == len(next_shape) == 3 and shape[1:] == next_shape[1:] and shape[0] > next_shape[0]


def _name(traced: Traced, node: Node, necks: list[Node], layers: set[Node]) -> str:
    """A name to read and to choose by, different for each cut."""
    if node is necks[-1]:
        return "features"
    if traced.blocks and node is traced.blocks[0].input:
        return "stem"
    for block in traced.blocks:
        if _shape(block.output) == _shape(node) and not _between(block.output, node) & layers:
            return block.name
    above = ancestors([node])
    return next(layer.target for layer in reversed(traced.graph.nodes) if layer in above and layer in layers)
