"""DELTA (Li et al. 2019): fine-tuning that keeps the feature maps which the task needs. No kin of delta-modules."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.nn import functional as F

from recombine.core.distributed import all_reduce_sum, gather_by_index
from recombine.core.errors import ConfigError
from recombine.core.types import Batch, Loader
from recombine.engine.evaluate import evaluating
from recombine.engine.logistic_regression import logistic_regression
from recombine.models.blocks import ancestors
from recombine.models.graph import Traced, frontier, segment
from recombine.models.model import pooled
from recombine.patch.end_to_end.method import EndToEnd
from recombine.patch.patched import TaskNetwork

__all__ = ["DeltaAttention"]

TEMPERATURE = 5.0
"""Of the soft-max of attention, as in the Transfer-Learning-Library."""


class DeltaAttention(EndToEnd):
    """L = CE + weight * Omega + head_weight / 2 ||classifier||^2, in the place of weight decay

        Omega = 1/2 sum_l sum_c  C_l a_lc / (H_l W_l) ||M_lc(x) - M0_lc(x)||^2,     summed over the batch

    M_l [B, C, H, W] is what the last convolution of block l gives, M0_l the same of the base as it was. a_l is a
    soft-max, of temperature 5, of how much the loss rises without a channel (standardised), with the base as it was and
    a classifier fitted to its features; `images` training images tell.

    Deviation: that classifier is a logistic regression on frozen features, not ten epochs of SGD. It is the same each
    time, and the paper too keeps the features as they are.

    Deviation: a channel is left out by zeroing its map, bias included, where the Transfer-Learning-Library zeroes the
    filter's weights; the two differ in convolutions with a bias alone. The images are spread over the training set,
    where that library takes the first ten shuffled batches.
    """

    def __init__(
        self, net: TaskNetwork, *, weight: float = 0.01, head_weight: float = 0.01, images: int = 320, **options: Any
    ) -> None:
        super().__init__(net, **options)
        self.weight, self.head_weight, self.images = weight, head_weight, images
        self.source = copy.deepcopy(net.base)
        self.frozen = (*self.frozen, "source")
        self.nodes = list(last_convolutions(net.patch.traced))
        self._maps: dict[nn.Module, Tensor] = {}
        for k, node in enumerate(self.nodes):
            for part in (self.source, net.base):
                part.get_submodule(str(node.target)).register_forward_hook(self._keep)
            self.register_buffer(f"attention{k}", torch.zeros(node.meta["shape"][1]))

    def prepare(self, images: Loader) -> None:
        """Compute the attention from the training images, each once."""
        features, labels, chosen = self._look(images)
        weight, bias = logistic_regression(features, labels, self.net.patch.classes)
        for k, node in enumerate(self.nodes):
            attention = self.get_buffer(f"attention{k}")
            rise = all_reduce_sum(self._rise(node, chosen, weight.to(attention), bias.to(attention)))
            attention.copy_(F.softmax((rise - rise.mean()) / (rise.std(correction=0) + 1e-12) / TEMPERATURE, 0))
        self._maps.clear()

    def penalty(self, batch: Batch, features: Tensor) -> Tensor:
        """Of this batch."""
        with torch.no_grad():
            self.source(self.net.preprocess(batch.images))
        maps = [self._maps.pop(self.net.base.get_submodule(str(node.target))) for node in self.nodes]
        before = [self._maps.pop(self.source.get_submodule(str(node.target))) for node in self.nodes]
        omega = features.new_zeros(())
        for k, (now, then) in enumerate(zip(maps, before, strict=True)):
            distance = (now.float() - then.float()).square().mean((2, 3)).sum(0)
            omega = omega + 0.5 * now.shape[1] * (self.get_buffer(f"attention{k}") * distance).sum()
        head: Any = self.net.patch.head
        return self.weight * omega + 0.5 * self.head_weight * sum(p.square().sum() for p in head.parameters())

    def parameter_groups(self) -> list[dict]:
        """Those of fine-tuning, without weight decay: the two penalties are in its place."""
        return [group | {"weight_decay": 0.0} for group in super().parameter_groups()]

    def _keep(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if self.training:
            self._maps[layer] = output

    def _look(self, images: Loader) -> tuple[Tensor, Tensor, list[Batch]]:
        """What enters the classifier for every image [N, D], labels [N], and this process's part of `self.images`."""
        step = max(1, len(images.indices) // self.images)
        wanted = torch.as_tensor(images.indices[::step][: self.images])
        found, chosen = [], []
        placeholder = next(node for node in self.net.patch.traced.graph.nodes if node.op == "placeholder")
        _, run = split_at(self.net, placeholder)
        with evaluating(self.net), closing(images.epoch(0)) as batches:
            for batch in batches:
                found.append((batch.index, run(self.net.preprocess(batch.images)), batch.labels))
                mine = torch.isin(batch.index, wanted.to(batch.index.device))
                chosen.append(Batch(batch.images[mine], batch.labels[mine], batch.index[mine]))
        index, features, labels = (torch.cat(parts) for parts in zip(*found, strict=True))
        _, features, labels = gather_by_index(index, features, labels)
        return features, labels, [batch for batch in chosen if len(batch.images)]

    def _rise(self, node: Node, batches: list[Batch], weight: Tensor, bias: Tensor) -> Tensor:
        """By how much the summed loss rises without each channel of a node [C]."""
        first, rest = split_at(self.net, node)
        rise = weight.new_zeros(node.meta["shape"][1])

        def loss(labels: Tensor, *values: Any) -> Tensor:
            return F.cross_entropy(rest(*values) @ weight.T + bias, labels, reduction="sum")

        with evaluating(self.net):
            for batch in batches:
                value, *others = first(self.net.preprocess(batch.images))
                before = loss(batch.labels, value, *others)
                for channel in range(len(rise)):
                    without = value.clone()
                    without[:, channel] = 0
                    rise[channel] += loss(batch.labels, without, *others) - before
        return rise


def last_convolutions(traced: Traced) -> Iterator[Node]:
    """The last convolution of each block's last branch; ConfigError if there is none."""
    found = 0
    for block in traced.last_blocks():
        part = block.parts[-1]
        inside = ancestors([part.branch], stop=[part.input])
        calls = [node for node in traced.graph.nodes if node in inside and node.op == "call_module"]
        of = [node for node in calls if isinstance(traced.net.get_submodule(str(node.target)), nn.Conv2d)]
        yield from of[-1:]
        found += len(of)
    if not found:
        raise ConfigError(f"{type(traced.net).__name__} has no convolution in its blocks: regularizer=delta_attention")


def split_at(net: TaskNetwork, node: Node) -> tuple[GraphModule, Callable[..., Tensor]]:
    """The base without its patch, in two: images to values, that of `node` first; and these to features [B, D]."""
    traced = net.patch.traced
    images = next(each for each in traced.graph.nodes if each.op == "placeholder")
    features, head = traced.node(traced.head).args[0], net.base.get_submodule(traced.head)
    live = {node}
    for each in traced.graph.nodes:
        if live.intersection(each.all_input_nodes):
            live.add(each)
    border = list(dict.fromkeys([node, *frontier(traced.graph, live - {node})]))
    rest = segment(net.base, traced.graph, border, features)

    def run(*values: Any) -> Tensor:
        found = rest(*(value.clone() if isinstance(value, Tensor) else value for value in values))  # some work in place
        return pooled(found, head)

    return segment(net.base, traced.graph, [images], border), run
