"""Where stitches start: as PyTorch does, scaled to the features, or at the optimum in closed form."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from recombine.core.distributed import all_reduce_sum
from recombine.core.types import Loader
from recombine.stitch.layers import rows, set_affine
from recombine.stitch.supernetwork import Supernetwork

__all__ = ["Moments", "initialise"]

RIDGE = 1e-6
"""Added to the diagonal of the normal equations, in units of its mean: dead channels have no variance."""


@dataclass(frozen=True)
class Moments:
    """Sums over the rows z = (A's channels, B's channels) of one pair, in double precision."""

    count: Tensor
    total: Tensor
    """[C_a + C_b]."""
    products: Tensor
    """[C_a + C_b, C_a + C_b]."""

    @classmethod
    def of(cls, a: Tensor, b: Tensor) -> Moments:
        """Of rows [N, C_a] and [N, C_b]."""
        both = torch.cat([a, b], 1).double()
        return cls(both.new_tensor(len(both)), both.sum(0), both.T @ both)

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.count + other.count, self.total + other.total, self.products + other.products)

    def reduce(self) -> Moments:
        """The sums over all processes, on the CPU."""
        return Moments(*(all_reduce_sum(part.cpu()) for part in (self.count, self.total, self.products)))

    def centred(self) -> tuple[Tensor, Tensor]:
        """Mean [C] and covariance [C, C]."""
        mean = self.total / self.count
        return mean, self.products / self.count - torch.outer(mean, mean)


def initialise(net: Supernetwork, init: str, loader: Loader, images: int) -> None:
    """Set all stitches from the first `images` of a loader; `default` leaves them as they are."""
    if init == "default":
        return
    for pair, moments in enumerate(_moments(net, loader, images)):
        for gene in (2 * pair, 2 * pair + 1):
            (_std if init == "std" else _least_squares)(net, gene, *_sides(net, gene, moments))


@torch.no_grad()
def _moments(net: Supernetwork, loader: Loader, images: int) -> list[Moments]:
    """One pass of both parents over enough batches, summed over all processes, on the CPU."""
    sums: list[Moments] = []
    seen = 0
    with closing(loader.epoch(0)) as batches:
        for batch in batches:
            values = [rows(v, net.layout(gene)) for gene, v in enumerate(net.features(batch.images))]
            fresh = [Moments.of(a, b) for a, b in zip(values[::2], values[1::2], strict=True)]
            sums = [a + b for a, b in zip(sums, fresh, strict=True)] if sums else fresh
            seen += loader.batch_size
            if seen >= images:
                break
    return [moments.reduce() for moments in sums]


def _sides(net: Supernetwork, gene: int, moments: Moments) -> tuple[Tensor, ...]:
    """For sender x and receiver y of a stitch: their means, the covariances xx and xy, the variances of y."""
    mean, covariance = moments.centred()
    width = net.channels(2 * (gene // 2))
    a, b = slice(0, width), slice(width, None)
    x, y = (b, a) if gene % 2 == 0 else (a, b)
    return mean[x], mean[y], covariance[x, x], covariance[x, y], covariance[y, y].diagonal()


def _std(net: Supernetwork, gene: int, x: Tensor, y: Tensor, xx: Tensor, xy: Tensor, yy: Tensor) -> None:
    """PyTorch's values scaled by std(y) / std(x) and shifted by mean(y) - mean(x), one number each for all channels."""
    stitch: Any = net.stitches[gene]
    spreads = [
        (variances + (means - means.mean()).square()).mean().sqrt()
        for means, variances in ((x, xx.diagonal()), (y, yy))
    ]
    weight = stitch.weight.detach().flatten(1) * (spreads[1] / spreads[0].clamp(min=1e-12))
    set_affine(stitch, weight, stitch.bias.detach() + (y.mean() - x.mean()))


def _least_squares(net: Supernetwork, gene: int, x: Tensor, y: Tensor, xx: Tensor, xy: Tensor, yy: Tensor) -> None:
    """The minimum of the training loss over the images seen."""
    ridge = RIDGE * xx.diagonal().mean().clamp(min=1e-12)
    weight = torch.linalg.solve(xx + ridge * torch.eye(len(xx), dtype=xx.dtype, device=xx.device), xy).T
    set_affine(net.stitches[gene], weight, y - weight @ x)
