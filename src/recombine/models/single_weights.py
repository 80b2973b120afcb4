"""Which single weights of a network can be switched off, and the network with these at zero."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.fx import Node

from recombine.models.blocks import ancestors
from recombine.models.graph import Traced

__all__ = ["WeightGroup", "gated_weights", "weight_groups", "without_weights"]


@dataclass(frozen=True)
class WeightGroup:
    """The weights of one layer, each of which can be switched off (Partial Network Cloning, mask M)."""

    name: str
    """Path of the layer."""
    node: Node
    """Its only call."""
    channels: int
    """How many weights it has; biases are not among them."""
    gates: ClassVar[tuple[Node, ...]] = ()
    consumers: ClassVar[tuple[tuple[str, int], ...]] = ()


def weight_groups(traced: Traced, after: Node | None = None, *, streams: bool = False) -> tuple[WeightGroup, ...]:
    """The layers with a kernel or matrix but the classifier, from input to output, or those above the cut `after`.

    Left out are layers that are called several times. `streams` changes nothing: no layer loses an output. Raises
    ConfigError if the network has no classifier.
    """
    head = traced.node(traced.head)
    above = {n for n in traced.graph.nodes if after is None or (n is not after and after in ancestors([n]))}
    calls = [node for node in traced.graph.nodes if node.op == "call_module"]
    names = [str(node.target) for node in calls]
    found = []
    for node in calls:
        weight: Any = getattr(traced.net.get_submodule(str(node.target)), "weight", None)
        kernel = isinstance(weight, Tensor) and weight.ndim > 1 and len(node.args) == 1
        if kernel and node in above and node is not head and names.count(str(node.target)) == 1:
            found.append(WeightGroup(str(node.target), node, weight.numel()))
    return tuple(found)


def gated_weights(
    traced: Traced, groups: Sequence[WeightGroup], prefix: str, gates: str
) -> tuple[fx.Graph, dict[Node, Node]]:
    """As `channels.gated`: module `<gates>.<i>` is called on the weights of group i, for its layer."""
    graph, new = traced.copy(prefix)
    for position, group in enumerate(groups):
        call = new[group.node]
        with graph.inserting_before(call):
            layer = graph.get_attr(str(call.target))
            weight = graph.get_attr(f"{call.target}.weight")
            gate = graph.call_module(f"{gates}.{position}", (weight,))
            value = graph.call_function(_call_with_weight, (layer, gate, *call.args))
        value.meta = dict(call.meta)
        call.replace_all_uses_with(value)
        graph.erase_node(call)
        new[group.node] = value
    return graph, new


def _call_with_weight(layer: nn.Module, weight: Tensor, value: Tensor) -> Tensor:
    return functional_call(layer, {"weight": weight}, (value,))


@torch.no_grad()
def without_weights(traced: Traced, groups: Sequence[WeightGroup], kept: Sequence[Tensor]) -> nn.Module:
    """A copy of the network in which the weights outside the masks, bool [weights of a group] each, are zero."""
    net = deepcopy(traced.net)
    for group, mask in zip(groups, kept, strict=True):
        weight: Any = net.get_submodule(group.name).weight
        weight.mul_(mask.view_as(weight))
    return net
