"""What of the source matters for the cloned classes before anything is learned: a score for each filter or weight."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, vmap

from recombine.core.distributed import all_reduce_sum
from recombine.core.types import Loader
from recombine.engine.evaluate import evaluating
from recombine.models.channels import ChannelGroup
from recombine.models.single_weights import WeightGroup
from recombine.pnc.clone.branch import Branch
from recombine.pnc.clone.candidates import Candidates

__all__ = ["filter_norms", "gradient_scores"]

MAX_GRADIENTS = 2**26
"""Derivatives of single images held in memory, in numbers."""


def filter_norms(source: nn.Module, branch: Branch) -> list[Tensor]:
    """Mean absolute weight of each filter, [C] of each mask, or of each weight itself.

    Of a stream it is that in the first layer that writes to it; of what enters the module that in its readers.
    """
    return [_norms(source, group) for group in branch.groups]


def _norms(source: nn.Module, group: ChannelGroup | WeightGroup) -> Tensor:
    if group.name == "input":
        readers: list[Any] = [source.get_submodule(name) for name, _ in group.consumers]
        columns = [reader.weight.detach().movedim(1, 0).reshape(group.channels, -1) for reader in readers]
        return torch.cat(columns, 1).abs().mean(1)
    layer: Any = source.get_submodule(group.name)
    return layer.weight.detach().reshape(group.channels, -1).abs().mean(1)


def gradient_scores(net: Candidates, loader: Loader, kind: str) -> list[list[Tensor]]:
    """Scores [C] of each mask of each branch by derivatives at m = 1, in one pass over images of the cloned classes.

    taylor: the sum over images and cloned outputs z_k of (d z_k / d m_j)^2: by how much an output changes where a
    filter is taken off, to first order (Molchanov et al., CVPR 2019, of outputs in place of a loss). relevance: the sum
    over images of d z_y / d m_j, y the image's own class: how much a filter speaks for it, what layer-wise relevance
    propagation gives it in a network of ReLUs without biases (LRP-0; Bach et al., PLOS ONE 2015).
    """
    totals = [[torch.zeros_like(mask.scores) for mask in branch.channel_masks] for branch in net.branches]
    with evaluating(net), closing(loader.epoch(0)) as batches:
        for batch in batches:
            values, _ = net.forward_source(net.source.preprocess(batch.images))
            for branch, value, total in zip(net.branches, values, totals, strict=True):
                if total:
                    _add_derivatives(branch, value, total, batch.labels if kind == "relevance" else None)
    return [[all_reduce_sum(each) for each in total] for total in totals]


def _add_derivatives(branch: Branch, value: Tensor, totals: list[Tensor], labels: Tensor | None) -> None:
    """Add those of the source's values [B, ...] at the entry of a branch; with `labels`, of each one's own output."""
    scores = [mask.scores.detach() for mask in branch.channel_masks]
    keys = [f"channel_masks.{place}.scores" for place in range(len(scores))]

    def outputs(given: list[Tensor], one: Tensor) -> Tensor:
        # the derivative by a score is that by its multiplier, which is 1 as long as all are on
        logits = functional_call(branch.masked, dict(zip(keys, given, strict=True)), (one[None],))[1]
        return logits[0, branch.columns].float()

    def own(given: list[Tensor], one: Tensor, label: Tensor) -> Tensor:
        return outputs(given, one).gather(0, label[None]).sum()

    rows = max(1, MAX_GRADIENTS // (len(branch.columns) * sum(map(len, scores))))
    for place in range(0, len(value), rows):
        part = value.detach()[place : place + rows]
        if labels is None:
            slopes = [each.square().sum((0, 1)) for each in vmap(jacrev(outputs), (None, 0))(scores, part)]
        else:
            found = vmap(grad(own), (None, 0, 0))(scores, part, labels[place : place + rows])
            slopes = [each.sum(0) for each in found]
        for total, slope in zip(totals, slopes, strict=True):
            total += slope
