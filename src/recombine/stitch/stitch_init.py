"""Where stitches start: as PyTorch does, or in closed form."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass

import torch
from torch import Tensor

from recombine.core.distributed import all_reduce_sum
from recombine.core.types import Loader
from recombine.stitch.layers import affine_part, aligned, rows, set_affine
from recombine.stitch.supernetwork import Supernetwork

__all__ = ["Moments", "initialise"]

RIDGE = 1e-6
"""Added to the diagonal of the normal equations, in units of its mean: dead channels have no variance."""
MAX_SCALE = 10.0
"""Of matched variances: what explains less than 1 % of a channel is not blown up to all of it."""


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
    """Set all stitches from the first `images` of a loader; `default` keeps them."""
    if init == "default":
        return
    for gene, moments in enumerate(_moments(net, loader, images)):
        STARTS[init](net, gene, *_sides(net, gene, moments))


@torch.no_grad()
def _moments(net: Supernetwork, loader: Loader, images: int) -> list[Moments]:
    """For each gene, from one pass of both parents over enough batches, summed over all processes, on the CPU."""
    sums: list[list[Moments]] = []
    seen = 0
    with closing(loader.epoch(0)) as batches:
        for batch in batches:
            features = net.features(batch.images)
            fresh = [_of_pair(net, pair, features) for pair in range(len(net.pairs))]
            if sums:
                sums = [[a + b for a, b in zip(*each, strict=True)] for each in zip(sums, fresh, strict=True)]
            else:
                sums = fresh
            seen += loader.batch_size
            if seen >= images:
                break
    reduced = [[moments.reduce() for moments in of_pair] for of_pair in sums]
    return [of_pair[side] for of_pair in reduced for side in (0, -1)]


def _of_pair(net: Supernetwork, pair: int, features: list[Tensor]) -> list[Moments]:
    """Of both genes of a pair: one for both, unless values are resized for the other's rows."""
    into_a, into_b = net.stitches[2 * pair], net.stitches[2 * pair + 1]
    a, b = features[2 * pair : 2 * pair + 2]
    layout_a, layout_b = net.layout(2 * pair), net.layout(2 * pair + 1)
    first = Moments.of(rows(a, layout_a), rows(aligned(into_a, b), layout_a))
    if affine_part(into_b) is into_b:
        return [first]
    return [first, Moments.of(rows(aligned(into_b, a), layout_b), rows(b, layout_b))]


def _sides(net: Supernetwork, gene: int, moments: Moments) -> tuple[Tensor, ...]:
    """For sender x and receiver y of a stitch: their means, the covariances xx and xy, the variances of y."""
    mean, covariance = moments.centred()
    width = net.channels(2 * (gene // 2))
    a, b = slice(0, width), slice(width, None)
    x, y = (b, a) if gene % 2 == 0 else (a, b)
    return mean[x], mean[y], covariance[x, x], covariance[x, y], covariance[y, y].diagonal()


def _least_squares(net: Supernetwork, gene: int, x: Tensor, y: Tensor, xx: Tensor, xy: Tensor, yy: Tensor) -> None:
    """The minimum of the training loss over these images."""
    weight = _regression(xx, xy)
    set_affine(net.stitches[gene], weight, y - weight @ x)


def _matched(net: Supernetwork, gene: int, x: Tensor, y: Tensor, xx: Tensor, xy: Tensor, yy: Tensor) -> None:
    """Least squares, each channel scaled so that its variance is its target's: by 1 / R, at most `MAX_SCALE`.

    Least squares alone shrinks the variance of a channel to R^2 of its target's, and the layers behind are not used
    to that.
    """
    weight = _regression(xx, xy)
    variance = ((weight @ xx) * weight).sum(1)
    scale = (yy / variance.clamp(min=1e-12)).sqrt().clamp(max=MAX_SCALE)
    weight = weight * scale[:, None]
    set_affine(net.stitches[gene], weight, y - weight @ x)


def _regression(xx: Tensor, xy: Tensor) -> Tensor:
    """The weights [C_y, C_x] of least squares, with a small ridge."""
    ridge = RIDGE * xx.diagonal().mean().clamp(min=1e-12)
    return torch.linalg.solve(xx + ridge * torch.eye(len(xx), dtype=xx.dtype, device=xx.device), xy).T


STARTS = {"lstsq": _least_squares, "matched": _matched}
