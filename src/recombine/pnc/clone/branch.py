"""A part of the source hung into the target: adapter, upper layers of the source, new outputs (eq. 7).

The paper's full text was not at hand: layers, masks and heads are our reading (docs/methods/clone.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.fx import Node
from torch.nn.modules.batchnorm import _BatchNorm

from recombine.core.errors import ConfigError
from recombine.models.channels import channel_groups, gated, input_group, keep_outputs, without_channels
from recombine.models.graph import Traced, segment
from recombine.models.single_weights import gated_weights, weight_groups, without_weights
from recombine.pnc.clone.adapters import make_adapter, pool
from recombine.pnc.clone.batchnorm import copy_buffers, find_batchnorms
from recombine.pnc.clone.masks import ChannelMask, WeightMask
from recombine.pnc.clone.positions import Position

__all__ = [
    *("GRANULARITIES", "HEADS", "Branch", "FullHead", "RowsHead"),
    *("features_node", "find_linear_head", "join_logits", "logits_node"),
]


class RowsHead(nn.Module):
    """New classifier rows that see the features of both branches; they start as the source's own rows."""

    def __init__(self, rows: nn.Linear, target: nn.Linear) -> None:
        super().__init__()
        self.fc = self._start(nn.Linear(target.in_features + rows.in_features, rows.out_features), rows)

    @staticmethod
    def _start(fc: nn.Linear, rows: nn.Linear) -> nn.Linear:
        """The last rows and columns of `fc` become the source's, all else 0."""
        fc.weight.data.zero_()
        fc.weight.data[-rows.out_features :, -rows.in_features :] = rows.weight.data
        fc.bias.data.zero_()
        fc.bias.data[-rows.out_features :] = rows.bias.data
        return fc

    def forward(self, target: Tensor, features: Tensor, logits: Tensor) -> Tensor:
        """Features [B, C_t] and [B, C_s], or maps of them -> logits of the cloned classes [B, n]."""
        return self.fc(torch.cat([pool(target), pool(features)], 1))

    @torch.no_grad()
    def narrow(self, kept: Tensor) -> None:
        """Forget the source's features outside a bool mask [C_s]."""
        width = self.fc.in_features - len(kept)
        columns = torch.cat([torch.ones(width, dtype=torch.bool, device=kept.device), kept])
        self.fc.weight = nn.Parameter(self.fc.weight[:, columns])
        self.fc.in_features = int(columns.sum())


class FullHead(RowsHead):
    """A classifier of all classes over the features of both branches; it starts as both own classifiers side by side.

    The only head that answers for the target's classes too, and so changes their logits while the clone is attached.
    """

    def __init__(self, rows: nn.Linear, target: nn.Linear) -> None:
        nn.Module.__init__(self)
        width, classes = target.in_features, target.out_features
        self.fc = self._start(nn.Linear(width + rows.in_features, classes + rows.out_features), rows)
        self.fc.weight.data[:classes, :width] = target.weight.data
        self.fc.bias.data[:classes] = target.bias.data if target.bias is not None else 0

    def forward(self, target: Tensor, features: Tensor, logits: Tensor) -> Tensor:
        """Features [B, C_t] and [B, C_s] -> logits of all classes [B, T + n]."""
        return super().forward(target, features, logits)


class ScaleHead(nn.Module):
    """The source's own logits, each with a factor and a bias: the fewest parameters."""

    def __init__(self, rows: nn.Linear, target: nn.Linear) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(rows.out_features))
        self.bias = nn.Parameter(torch.zeros(rows.out_features))

    def forward(self, target: Tensor, features: Tensor, logits: Tensor) -> Tensor:
        """Logits of the cloned classes [B, n] -> [B, n]."""
        return self.factor * logits + self.bias


class ConcatHead(nn.Module):
    """The source's own logits as they are."""

    def __init__(self, rows: nn.Linear, target: nn.Linear) -> None:
        super().__init__()

    def forward(self, target: Tensor, features: Tensor, logits: Tensor) -> Tensor:
        """Logits of the cloned classes [B, n] -> the same."""
        return logits


HEADS: dict[str, type[nn.Module]] = {"rows": RowsHead, "scale": ScaleHead, "full": FullHead, "concat": ConcatHead}
"""Kinds of new outputs; each is built of the source's rows for the cloned classes and the target's classifier."""


def join_logits(target: Tensor, new: Tensor, head: nn.Module) -> Tensor:
    """Logits of all classes [B, T + n]: the target's [B, T], then the head's [B, n]; those of a `FullHead` are all."""
    return new if isinstance(head, FullHead) else torch.cat([target, new], 1)


class Granularity(NamedTuple):
    """What a mask switches off: how it is found, put into the graph, and taken out."""

    groups: Callable[..., Sequence[Any]]
    mask: Callable[[int], ChannelMask]
    gated: Callable[..., tuple[fx.Graph, dict[Node, Node]]]
    without: Callable[..., nn.Module]


GRANULARITIES = {
    "filter": Granularity(channel_groups, ChannelMask, gated, without_channels),
    "weight": Granularity(weight_groups, WeightMask, gated_weights, without_weights),
}


class Branch(nn.Module):
    """Features of the target at one position in, logits of the cloned classes out.

    The source is frozen, shared by all branches and not registered here; channel masks, adapter and head are.
    """

    def __init__(
        self,
        position: Position,
        source: Traced,
        outputs: Sequence[int],
        target_head: nn.Linear,
        *,
        adapter: str,
        head: str,
        recalibrated: bool = False,
        residual: str = "none",
        granularity: str = "filter",
        mask_input: bool = False,
    ) -> None:
        """`outputs`: the source's outputs that are cloned, in the order of the new logits; `target_head`: the target's
        classifier.

        `recalibrated`: BatchNorm statistics are the branch's own, to be estimated by `recalibrate`. `residual`: stage
        masks the residual stream of each stage above the position too. `granularity`: what a mask switches off, one of
        `GRANULARITIES`. `mask_input`: channels of the source's value at the position go too, where they can.
        """
        super().__init__()
        self.position, self.outputs = position, list(outputs)
        self.columns: Tensor
        """`outputs` where the network is: indexing by a list would make the host wait for the device."""
        self.register_buffer("columns", torch.tensor(self.outputs), persistent=False)
        self.kinds = {"adapter": adapter, "head": head, "recalibrated": recalibrated, "residual": residual}
        self.kinds |= {"granularity": granularity, "mask_input": mask_input}
        source = copy_buffers(source) if recalibrated else source
        self.granularity = GRANULARITIES[granularity]
        self.input = input_group(source, position.source.node) if mask_input else None
        above = self.granularity.groups(source, after=position.source.node, streams=residual == "stage")
        self.groups = [*([self.input] if self.input else []), *above]
        masks = nn.ModuleList(self.granularity.mask(group.channels) for group in self.groups)
        self.channel_masks: Sequence[ChannelMask] = masks  # type: ignore[assignment]
        self.adapter = make_adapter(position, adapter)
        self.head = HEADS[head](_copy_rows(source, self.outputs), target_head)
        self.source = (source,)  # in a tuple: it is shared, and no part of this module
        self._cut()

    def _cut(self) -> None:
        """Cut the masked source above the position."""
        (source,) = self.source
        root: Any = nn.Module()
        root.source, root.channel_masks = source.net, self.channel_masks
        graph, new = self.granularity.gated(source, self.groups, "source.", "channel_masks")
        outputs = [new[features_node(source)], new[logits_node(source)]]
        entry = new[self.position.source.node]
        if self.input and self.position.source.node in self.input.gates:
            (entry,) = entry.all_input_nodes  # what enters is not masked yet
        # in a tuple: what is in it must not be registered as a part of this module
        self._upper = (segment(root, graph, [entry], outputs),)

    def _apply(self, function: Any, recurse: bool = True) -> Any:
        moved = super()._apply(function, recurse)
        self._cut()  # constants of the graph are copied references, which a move to another device can replace
        return moved

    @property
    def masked(self) -> nn.Module:
        """The masked source above the position, its masks under the names `channel_masks.<i>`; see `upper`."""
        return self._upper[0]

    def upper(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """From the source's value at the position to its features [B, C_s] and its logits of all classes [B, S]."""
        return self._upper[0](value)

    def forward(self, value: Tensor, target_features: Tensor) -> Tensor:
        """The target's value at the position and its features [B, C_t] -> what `join_logits` takes as new."""
        features, logits = self.upper(self.adapter(value))
        return self.head(target_features, features, logits[:, self.columns])

    def batchnorms(self) -> list[_BatchNorm]:
        """The BatchNorms of the source's layers above the position."""
        return find_batchnorms(self._upper[0])

    def kept_channels(self) -> list[Tensor]:
        """Which filters of each group are kept, or which weights, bool [C] each."""
        return [mask.kept() for mask in self.channel_masks]

    def kept_features(self) -> Tensor | None:
        """Which of the features that enter the classifier are kept, bool [C_s]; None if all are."""
        head = self.source[0].head
        for group, mask in zip(self.groups, self.channel_masks, strict=True):
            spread = dict(group.consumers).get(head)
            if spread:
                return mask.kept().repeat_interleave(spread)
        return None

    def extract_adapter(self) -> nn.Module:
        """A copy of the adapter that makes only the channels that are kept."""
        adapter = deepcopy(self.adapter)
        if self.input:
            layers = [part for part in adapter.modules() if isinstance(part, nn.Conv2d | nn.Linear)]
            for layer in (*layers[-1:], *find_batchnorms(adapter)):
                keep_outputs(layer, self.channel_masks[0].kept())
        return adapter

    def extract(self) -> nn.Module:
        """The source without what is masked; its layers below the cut are whole."""
        return self.granularity.without(self.source[0], self.groups, self.kept_channels())


def _copy_rows(source: Traced, outputs: Sequence[int]) -> nn.Linear:
    """The rows of the source's classifier for some of its outputs."""
    rows = find_linear_head(source)
    cloned = nn.Linear(rows.in_features, len(outputs))
    cloned.weight.data.copy_(rows.weight.data[outputs])
    cloned.bias.data.copy_(rows.bias.data[outputs] if rows.bias is not None else 0)
    return cloned


def features_node(traced: Traced) -> Node:
    """What enters the classifier."""
    return traced.node(traced.head).all_input_nodes[0]


def logits_node(traced: Traced) -> Node:
    """What the network returns: its classifier's value, or the mean over space of that."""
    return next(node for node in traced.graph.nodes if node.op == "output").all_input_nodes[0]


def find_linear_head(traced: Traced) -> nn.Linear:
    """The classifier as a linear layer; ConfigError if it is none.

    A convolution of one pixel over the last maps is what it does to each pixel, or to the means of the maps where no
    activation comes before the mean of its outputs (SqueezeNet has one, so that rows on the means only start near it).
    """
    head: Any = traced.net.get_submodule(traced.head)
    if isinstance(head, nn.Linear):
        return head
    if head.kernel_size != (1, 1) or head.groups != 1:
        raise ConfigError(
            f"{type(traced.net).__name__} ends in a convolution of {list(head.kernel_size)} pixels; cloning needs a "
            f"linear classifier, or a convolution of one pixel, as ResNets, MobileNets and SqueezeNets have"
        )
    linear = nn.Linear(head.in_channels, head.out_channels, bias=head.bias is not None, device="meta")
    linear.weight = nn.Parameter(head.weight.detach().flatten(1), requires_grad=False)
    if head.bias is not None:
        linear.bias = nn.Parameter(head.bias.detach(), requires_grad=False)
    return linear
