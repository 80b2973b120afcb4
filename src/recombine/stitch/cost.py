"""Multiply-adds of single operations, as the authors count them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx, nn
from torch.fx import Node
from torch.utils.flop_counter import FlopCounterMode

from recombine.stitch.parents import Parent

__all__ = ["multiply_adds", "node_costs"]


def multiply_adds(layer: nn.Module, shape: tuple[int, ...]) -> int:
    """Of one image through a layer without parts whose output has `shape` (with the batch axis).

    A convolution costs its parameters once a pixel of its output, any other layer its parameters once. Activations,
    sums, pooling and the pixels of a normalisation are free, as in torchinfo, which the authors used. Deviation: a
    linear layer counts once a token, where torchinfo counts it once.
    """
    parameters = sum(parameter.numel() for parameter in layer.parameters())
    if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return parameters * math.prod(shape[2:])
    if isinstance(layer, nn.Linear):
        return parameters * math.prod(shape[1:-1])
    return parameters


def node_costs(parent: Parent) -> dict[Node, int]:
    """Multiply-adds of every node of a parent for one image.

    Deviation: operations that are no layers (matrix products of attention, convolutions with computed weights) count
    as PyTorch counts them; torchinfo leaves them out.
    """
    counter = _Counter(fx.GraphModule(parent.net, parent.graph))
    like = next(parent.net.parameters())
    with torch.no_grad():
        counter.run(torch.zeros(1, 3, parent.model.size, parent.model.size).to(like))
    named = {node.name: node for node in parent.graph.nodes}
    return {named[name]: cost for name, cost in counter.costs.items()}


class _Counter(fx.Interpreter):
    """Counts while it runs; the nodes of its module are copies, so it goes by their names."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.costs: dict[str, int] = {}

    def run_node(self, node: Node) -> Any:
        with FlopCounterMode(display=False) as counter:
            result = super().run_node(node)
        layer = self.fetch_attr(str(node.target)) if node.op == "call_module" else None
        if layer is not None and not list(layer.children()):
            self.costs[node.name] = multiply_adds(layer, getattr(result, "shape", ()))
        else:
            self.costs[node.name] = counter.get_total_flops() // 2
        return result
