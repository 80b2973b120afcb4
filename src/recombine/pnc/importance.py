"""What of the source matters for the cloned classes, before anything is learned: one score for each filter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from recombine.core.distributed import all_reduce_sum
from recombine.core.types import Loader
from recombine.pnc.clone.branch import Branch
from recombine.pnc.clone.candidates import Candidates
from recombine.pnc.clone.masks import ChannelMask

__all__ = ["filter_norms", "gradient_scores"]


def filter_norms(source: nn.Module, branch: Branch) -> list[Tensor]:
    """Mean absolute weight of each filter, [C] of each mask; of a stream, in the first layer that writes to it."""
    layers: list[Any] = [source.get_submodule(group.name) for group in branch.groups]
    return [layer.weight.detach().flatten(1).abs().mean(1) for layer in layers]


def gradient_scores(net: Candidates, loader: Loader, kind: str) -> list[list[Tensor]]:
    """Scores [C] of each mask of each branch by derivatives at m = 1, in one pass over images of the cloned classes.

    taylor: the sum over images and cloned outputs z_k of (d z_k / d m_j)^2: by how much an output changes where a
    filter is taken off, to first order (Molchanov et al., CVPR 2019, of outputs in place of a loss). relevance: the sum
    over images of d z_y / d m_j, y the image's own class: how much a filter speaks for it, what layer-wise relevance
    propagation gives it in a network of ReLUs without biases (LRP-0; Bach et al., PLOS ONE 2015).
    """
    totals = [[torch.zeros_like(mask.scores) for mask in branch.channel_masks] for branch in net.branches]
    with closing(loader.epoch(0)) as batches:
        for batch in batches:
            values, _ = net.forward_source(net.source.preprocess(batch.images))
            for branch, value, total in zip(net.branches, values, totals, strict=True):
                if total:
                    _add_derivatives(branch, value, total, batch.labels if kind == "relevance" else None)
    return [[all_reduce_sum(each) for each in total] for total in totals]


def _add_derivatives(branch: Branch, value: Tensor, totals: list[Tensor], labels: Tensor | None) -> None:
    """Add those of the source's values [B, ...] at the entry of a branch; with `labels`, of each one's own output."""
    with _seen(branch.channel_masks) as seen, torch.enable_grad():
        logits = branch.upper(value.detach().requires_grad_())[1][:, branch.columns].float()
    seeds = logits.unbind(1) if labels is None else (logits.gather(1, labels[:, None]),)
    for outputs in seeds:
        gradients = torch.autograd.grad(outputs.sum(), [given for _, given in seen], retain_graph=True)
        slopes = [torch.zeros(len(value), len(total), device=total.device) for total in totals]
        for (place, given), gradient in zip(seen, gradients, strict=True):
            # m_j multiplies whole maps, so that its derivative is the sum of gradient times value over all of them
            slopes[place] += (gradient * given.detach()).unflatten(1, (len(totals[place]), -1)).flatten(2).sum(2)
        for total, slope in zip(totals, slopes, strict=True):
            total += (slope.square() if labels is None else slope).sum(0)


@contextmanager
def _seen(channel_masks: Sequence[ChannelMask]) -> Iterator[list[tuple[int, Tensor]]]:
    """What each mask, by its place, gives in the forward passes within; that of a residual stream several times."""
    seen: list[tuple[int, Tensor]] = []

    def note(place: int) -> Any:
        return lambda mask, inputs, value: seen.append((place, value))

    hooks = [mask.register_forward_hook(note(place)) for place, mask in enumerate(channel_masks)]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
