"""All stitches trained at once: each reproduces the other network's features, no labels are used."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from recombine.core.distributed import all_reduce_sum, average, world
from recombine.core.types import Batch, Loader, Step
from recombine.engine.evaluate import autocast
from recombine.engine.method import Method
from recombine.stitch.layers import rows
from recombine.stitch.supernetwork import Supernetwork

__all__ = ["TINY", "StitchTraining", "relative_errors", "spread"]


class StitchTraining(Method):
    """The sum over all stitches of their mean squared errors, from one forward pass of each parent.

    Stitches read features of the frozen parents and feed only their losses, so that their gradients do not mix:
    training is a set of independent regressions.
    """

    frozen = ("net.nets",)
    net: Supernetwork

    def __init__(self, net: Supernetwork) -> None:
        super().__init__(net)

    def forward(self, batch: Batch) -> Step:
        """The loss of a batch, without its labels."""
        features = self.net.features(batch.images)
        losses, spreads = [], []
        for gene, stitch in enumerate(self.net.stitches):
            target = features[gene].float()
            losses.append(F.mse_loss(stitch(features[gene ^ 1]).float(), target))
            spreads.append(spread(target))
        errors = torch.stack(losses)
        loss = errors.sum()
        relative = (errors.detach() / torch.stack(spreads).clamp(min=TINY)).mean()
        return Step(loss, {"loss": loss.detach(), "relative_error": relative})


def spread(target: Tensor) -> Tensor:
    """The variance of a batch's features, 0-d, over all processes; no gradient."""
    if world() == 1:
        return target.var(correction=0)
    return average((target - average(target.mean())).square().mean())


TINY = 1e-12
"""Smallest variance of a target; a constant one has none."""


@torch.no_grad()
def relative_errors(net: Supernetwork, loader: Loader, precision: str) -> Tensor:
    """For each stitch its mean squared error over all samples / the variance of its target within channels [2m].

    0: equal to the features; 1: no better than the mean of each channel.
    """
    sums: list[list[Tensor]] = []
    for batch in loader.epoch(0):
        with autocast(precision, batch.images.device):
            features = net.features(batch.images)
            stitched = [stitch(features[gene ^ 1]) for gene, stitch in enumerate(net.stitches)]
        fresh = []
        for gene, (value, target) in enumerate(zip(stitched, features, strict=True)):
            values, targets = (rows(v, net.layout(gene)).double() for v in (value, target))
            count = targets.new_full((1,), len(targets))
            fresh.append(
                [(values - targets).square().sum().view(1), targets.square().sum().view(1), targets.sum(0), count]
            )
        if sums:
            sums = [[a + b for a, b in zip(old, new, strict=True)] for old, new in zip(sums, fresh, strict=True)]
        else:
            sums = fresh
    found = []
    for parts in sums:
        error, squares, total, count = (all_reduce_sum(part.cpu()) for part in parts)
        found.append(error / (squares - total.square().sum() / count).clamp(min=TINY))
    return torch.cat(found)
