"""Which filters of a network can be switched off on their own, and the smaller network without them.

Everything is found in the traced graph. Filters are free where their channels stay apart until convolutions or linear
layers read them; channels that reach a product, a concatenation or a shuffle stay whole, and so do those of a sum (a
residual stream) unless these are asked for: then all layers that write to the stream lose the same filters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from operator import is_not
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx import Node
from torch.nn.modules.batchnorm import _BatchNorm

from recombine.core.errors import ConfigError
from recombine.models.blocks import ADDITIONS, ancestors
from recombine.models.cuts import depthwise
from recombine.models.graph import Traced

__all__ = ["ChannelGroup", "channel_groups", "gated", "input_group", "keep_outputs", "without_channels"]

STATISTICS = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}


@dataclass(frozen=True)
class ChannelGroup:
    """The output channels of one layer, or of all that write to a residual stream, each of which can be switched off
    (Partial Network Cloning, mask M)."""

    name: str
    """Path of the convolution or linear layer that makes the channels, the first of a stream's."""
    gates: tuple[Node, ...]
    """The last values [B, channels, ...] before the consumers, to be multiplied by one 0/1 mask over their second axis;
    one value, but of a stream those before each of its readers."""
    channels: int
    producers: tuple[str, ...]
    """Those layers, and the BatchNorms and depth-wise convolutions after them: a channel's own weights."""
    consumers: tuple[tuple[str, int], ...]
    """The layers that read the channels, and how many input features each channel gives them (H * W if flattened)."""


def channel_groups(traced: Traced, after: Node | None = None, *, streams: bool = False) -> tuple[ChannelGroup, ...]:
    """The groups of a network from input to output, or of its part above the cut `after` (the paper leaves open which).

    `streams`: also residual streams all of whose writers lie above the cut.

    A group begins at a plain convolution (groups=1) or linear layer but the classifier, and goes through what treats
    each channel for itself: BatchNorm, depth-wise convolutions, activations, pooling, means over space, a flattening.
    It ends where all that reads the value is plain convolutions and linear layers. Left out are layers that are called
    several times, subclasses of them (whose weights may be normalised over the channels), values that fork into
    different operations before the consumers, and anything but a dropout after the flattening of a map.

    Raises ConfigError if the network has no classifier.
    """
    layers = _Layers(traced)
    head = traced.node(traced.head)
    found = []
    above = {n for n in traced.graph.nodes if after is None or (n is not after and after in ancestors([n]))}
    taken: set[str] = set()
    for node in traced.graph.nodes:
        if node not in above or node is head or not layers.plain(node) or str(node.target) in taken:
            continue
        group = _group(layers, node, (str(node.target),)) or (_stream(layers, node, above) if streams else None)
        if group is not None:
            found.append(group)
            taken.update(group.producers)
    return tuple(found)


def input_group(traced: Traced, cut: Node) -> ChannelGroup | None:
    """The channels of the value at a cut as a group, if plain layers alone read them; its producers lie above the cut.

    Without the other channels the part above the cut takes a narrower value.
    """
    found = _group(_Layers(traced), cut, ())
    return found and replace(found, name="input")


def gated(traced: Traced, groups: Sequence[ChannelGroup], prefix: str, gates: str) -> tuple[fx.Graph, dict[Node, Node]]:
    """A copy of the graph, its modules under `prefix`, in which module `<gates>.<i>` is called on the gates of group i.

    Also returns for each node of the traced graph the node that now gives its value (of a gate, the gated value).
    """
    graph, new = traced.copy(prefix)
    for position, group in enumerate(groups):
        for place in group.gates:
            value = new[place]
            with graph.inserting_after(value):
                gate = graph.call_module(f"{gates}.{position}", (value,))
            gate.meta = dict(value.meta, identity=False)
            value.replace_all_uses_with(gate, delete_user_cb=partial(is_not, gate))
            new[place] = gate
    return graph, new


def without_channels(traced: Traced, groups: Sequence[ChannelGroup], kept: Sequence[Tensor]) -> nn.Module:
    """A smaller copy of the network that computes what the gated one does (physical extraction of PNC).

    `kept` holds a boolean mask [channels] for each group. Module names and order are those of the network, so that its
    graph serves the copy too; the network itself does not change. Raises ConfigError if a mask keeps no channel.
    """
    net = deepcopy(traced.net)
    for group, mask in zip(groups, kept, strict=True):
        if not mask.any():
            raise ConfigError(f"all {group.channels} filters of {group.name} are switched off; keep at least one")
        for name in group.producers:
            keep_outputs(net.get_submodule(name), mask)
        for name, spread in group.consumers:
            _keep_inputs(net.get_submodule(name), mask.repeat_interleave(spread))
    return net


class _Layers:
    """What the calls in a graph are to the channels that pass them."""

    def __init__(self, traced: Traced) -> None:
        self.modules = dict(traced.net.named_modules())
        calls = [node.target for node in traced.graph.nodes if node.op == "call_module"]
        parameters = [node.target.rpartition(".")[0] for node in traced.graph.nodes if node.op == "get_attr"]
        self.uses = Counter(calls + parameters)

    def module(self, node: Node) -> nn.Module | None:
        """The module that is called, if it has weights and this is its only use."""
        return self.modules[node.target] if node.op == "call_module" and self.uses[node.target] == 1 else None

    def plain(self, node: Node) -> bool:
        """Whether all its input features make each of its output channels, in the second axis [B, C, ...]."""
        layer, axes = self.module(node), len(node.meta.get("shape", ()))
        convolution = type(layer) is nn.Conv2d and layer.groups == 1 and axes == 4
        return convolution or (type(layer) is nn.Linear and axes == 2)

    def weighted(self, node: Node) -> bool:
        """Whether it treats each channel for itself, with weights of its own for each."""
        layer = self.module(node)
        norm = isinstance(layer, _BatchNorm) and layer.state_dict().keys() <= STATISTICS
        return norm or (type(layer) is nn.Conv2d and depthwise(layer))

    def spread(self, node: Node) -> int:
        """How many features each channel becomes in an operation without weights; 0 if it does not stay apart."""
        (source,) = node.all_input_nodes if len(node.all_input_nodes) == 1 else (None,)
        if source is None or node.op not in ("call_module", "call_function", "call_method"):
            return 0
        if node.meta.get("identity"):
            return 1
        if node.op == "call_module" and self.modules[node.target].state_dict():
            return 0
        return _spread(lambda value: self._call(node, value), source.meta["shape"])

    def _call(self, node: Node, value: Tensor) -> object:
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda _: value)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        called: Any = self.modules[str(node.target)] if node.op == "call_module" else node.target
        return called(*args, **kwargs)


def _spread(operation, shape: tuple[int, ...]) -> int:
    """Features that an operation makes of each channel, if leaving out channels before or after it is the same.

    It is tried on random values of the shape [1, C, ...]: 0 if they differ, or it refuses fewer channels.
    """
    channels = shape[1]
    value = torch.randn(2, *shape[1:], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    some = torch.arange(channels) % 3 != 1
    try:
        few, many = operation(value[:, some]), operation(value.clone())
        expected = many.unflatten(1, (channels, -1))[:, some].flatten(1, 2)
        same = few.shape == expected.shape and torch.allclose(few, expected)
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):
        return 0
    return many.shape[1] // channels if same else 0


def _group(layers: _Layers, first: Node, makers: tuple[str, ...]) -> ChannelGroup | None:
    """The group that begins at a layer, its maker, if its channels stay apart until plain layers read them."""
    node = gate = first
    spread, producers = 1, [*makers]
    while not (node.users and all(layers.plain(user) for user in node.users)):
        if len(node.users) != 1:
            return None
        (node,) = node.users
        if spread > 1:
            if not node.meta.get("identity"):
                return None
        elif layers.weighted(node):
            producers.append(str(node.target))
        else:
            spread = layers.spread(node)
        if spread == 0:
            return None
        gate = node if spread == 1 else gate
    consumers = tuple((str(user.target), spread) for user in node.users)
    return ChannelGroup(str(first.target), (gate,), first.meta["shape"][1], tuple(producers), consumers)


def _stream(layers: _Layers, first: Node, above: Collection[Node]) -> ChannelGroup | None:
    """The group of a residual stream to which a layer writes, if plain layers above the cut alone write and read it.

    Its values are found by walking from each to what it is computed from, up to its writers, and to what uses it, down
    to its readers: through sums, and what treats each channel for itself.
    """
    gates: dict[Node, None] = {}
    producers: dict[str, None] = {}
    consumers: dict[str, int] = {}
    seen, waiting = {first}, [first]
    while waiting:
        node = waiting.pop()
        if node not in above or not _apart(layers, node, producers):
            return None
        inputs = [] if layers.plain(node) else node.all_input_nodes
        readers = [user for user in node.users if layers.plain(user)]
        if readers:
            gates[node] = None
            consumers |= {str(reader.target): 1 for reader in readers}
        near = [*inputs, *(user for user in node.users if user not in readers)]
        waiting += [each for each in dict.fromkeys(near) if each not in seen]
        seen.update(near)
    order = list(first.graph.nodes)
    return ChannelGroup(
        *(str(first.target), tuple(sorted(gates, key=order.index)), first.meta["shape"][1]),
        *(tuple(producers), tuple(consumers.items())),
    )


def _apart(layers: _Layers, node: Node, producers: dict[str, None]) -> bool:
    """Whether a value of a stream keeps channels apart, one feature each; a layer with weights is noted as producer."""
    if layers.plain(node) or layers.weighted(node):
        producers[str(node.target)] = None
        return True
    if node.target in ADDITIONS:
        shapes = [source.meta.get("shape") for source in node.all_input_nodes]
        return len(shapes) == len(node.args) == 2 and shapes[0] == shapes[1] == node.meta["shape"]
    return layers.spread(node) == 1


def keep_outputs(module: nn.Module, mask: Tensor) -> None:
    """Leave a layer, in place, only the output channels of a bool mask."""
    for key in ("weight", "bias", "running_mean", "running_var"):
        _keep(module, key, mask)
    count = int(mask.sum())
    if isinstance(module, nn.Conv2d):
        if depthwise(module):
            module.in_channels = module.groups = count
        module.out_channels = count
    elif isinstance(module, nn.Linear):
        module.out_features = count
    else:
        module.num_features = count  # type: ignore[assignment]


def _keep_inputs(module: nn.Module, mask: Tensor) -> None:
    _keep(module, "weight", (slice(None), mask))
    setattr(module, "in_channels" if isinstance(module, nn.Conv2d) else "in_features", int(mask.sum()))


def _keep(module: nn.Module, key: str, index: Tensor | tuple) -> None:
    old = getattr(module, key, None)
    if old is not None:
        values = old.detach()[index]
        setattr(module, key, nn.Parameter(values, old.requires_grad) if isinstance(old, nn.Parameter) else values)
