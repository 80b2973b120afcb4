"""The neighbourhood of an image, made by blanking patches, and linear models fitted in it (the manner of LIME).

A vector b in {0, 1}^Np marks which of the Np patches of an image are present; g(b) = [b, 1] theta is a linear model of
a network's outputs for the image with the other patches blanked. That the paper measures local behaviour like this
is our reading, made without its text; functions state what is from LIME (Ribeiro et al., KDD 2016) and what is ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor

from recombine.core.counter_rng import bits
from recombine.core.errors import ConfigError
from recombine.pnc.settings import LimeSettings

__all__ = [
    "KERNELS",
    "OUTPUTS",
    "Neighbourhood",
    "Purpose",
    "blank",
    "draw_vectors",
    "fit_ridge",
    "predict_linear",
    "proximity",
]

WORD = 64  # random bits looked up at once


class Purpose(IntEnum):
    """What vectors are drawn for; each has random streams of its own, far from those of augmentation."""

    FIT = 1 << 20
    TRAIN = 2 << 20
    SIMILARITY = 3 << 20
    INSERT = 4 << 20


def proximity(vectors: Tensor, sigma: float) -> Tensor:
    """How much a blanked image counts: [..., Np] -> float32 [...], 1 with all patches present and 0 with none.

    pi_b = sqrt(exp(-d^2 / sigma^2)), d = 1 - cos(b, 1) = 1 - sqrt(|b|_1 / Np): LIME's default for images. Not stated
    by the paper; ours: pi_0 = 0, as the cosine of an empty b is not defined.
    """
    present = vectors.sum(-1) / vectors.shape[-1]
    distance = 1 - present.sqrt()
    return torch.exp(-(distance**2) / (2 * sigma**2)) * (present > 0)


KERNELS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "lime": proximity,
    "uniform": lambda vectors, sigma: torch.ones(vectors.shape[:-1], device=vectors.device),
}
"""`uniform` weighs all vectors alike, the empty one too, as Zest does (Jia et al., ICLR 2022)."""

OUTPUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "logit": lambda logits: logits,
    "prob": lambda logits: logits.softmax(-1),
}


class Neighbourhood(LimeSettings):
    """The settings of a `lime` node, with what they make of vectors and logits."""

    def weights(self, vectors: Tensor) -> Tensor:
        """pi_b of vectors [..., Np], float32 [...]."""
        return KERNELS[self.kernel](vectors, self.sigma)

    def outputs(self, logits: Tensor, columns: Tensor | None = None) -> Tensor:
        """What is modelled of logits [..., C] over all classes: float32 [..., O], those at `columns` int64 [O]."""
        values = OUTPUTS[self.output](logits.float())
        return values if columns is None else values.index_select(-1, columns)


def draw_vectors(address: tuple[int, int, Purpose], index: Tensor, count: int, patches: int) -> Tensor:
    """Presence vectors bool [B, count, Np] of the samples at positions `index` [B] of their split, on its device.

    `address` is (seed, epoch, purpose). The first vector of a sample is all ones; each b_j of the others is 1 with
    probability 0.5, independently, as LIME draws them. A vector is a function of the address, the sample's position
    and its number alone, whatever else is in the batch and however many are drawn.
    """
    seed, epoch, purpose = address
    number = index.long()[:, None] * (1 << 32) + torch.arange(count, device=index.device)
    words: list[Any] = [bits(seed, epoch, number, purpose + word) for word in range(-(-patches // WORD))]
    shifts = torch.arange(WORD, device=index.device)
    vectors = ((torch.stack(words, -1)[..., None] >> shifts) & 1).flatten(2)[..., :patches].bool()
    vectors[:, 0] = True
    return vectors


def blank(images: Tensor, vectors: Tensor, fill: str = "mean") -> Tensor:
    """Normalised images [B, 3, H, W] with the patches where b_j = 0 filled: [B * K, 3, H, W] for bool [B, K, Np].

    Patches are numbered row by row. `fill`: mean is 0, the mean colour that the network's preprocessing subtracts;
    patch_mean the mean colour of each patch, as LIME does. Row y belongs
    to patch row floor(y grid / H), so patches differ by at most a pixel where the grid does not divide the side.
    Ours: LIME and Zest blank super-pixels. ConfigError if the grid is finer than the pixels.
    """
    grid, (height, width) = math.isqrt(vectors.shape[-1]), images.shape[-2:]
    if grid > min(height, width):
        most = min(height, width)
        raise ConfigError(f"lime.grid={grid}: images of {height} x {width} px allow lime.grid={most} at most")
    rows, columns = (torch.arange(side, device=images.device) * grid // side for side in (height, width))
    shown = vectors.unflatten(-1, (grid, grid))[:, :, rows[:, None], columns]
    if fill == "mean":
        return (images[:, None] * shown[:, :, None]).flatten(0, 1)
    place = (rows[:, None] * grid + columns).flatten()
    inside = torch.nn.functional.one_hot(place, grid**2).to(images.dtype)
    means = images.flatten(2) @ (inside / inside.sum(0))
    filled = means[:, :, place].view_as(images)
    return torch.where(shown[:, :, None], images[:, None], filled[:, None]).flatten(0, 1)


def fit_ridge(vectors: Tensor, weights: Tensor, outputs: Tensor, alpha: float) -> Tensor:
    """Coefficients float64 [B, Np + 1, O] of one weighted linear model for each sample, the intercept last.

    argmin over theta of sum_b pi_b |y_b - [b, 1] theta|^2 + alpha |theta without intercept|^2 in closed form, for
    vectors [B, K, Np], weights pi [B, K] and outputs y [B, K, O]. The paper's penalty is not known to us; ours: ridge,
    which LIME takes for images.
    """
    design = torch.cat([vectors, torch.ones_like(vectors[..., :1])], -1).double()
    weighted = (design * weights[..., None].double()).mT
    penalty = torch.full(design.shape[-1:], alpha, dtype=torch.float64, device=design.device)
    penalty[-1] = 0
    # unlike solve, solve_ex does not wait for the device to ask whether the matrix is singular, which it is not
    return torch.linalg.solve_ex(weighted @ design + penalty.diag(), weighted @ outputs.double()).result


def predict_linear(theta: Tensor, vectors: Tensor) -> Tensor:
    """g(b) = [b, 1] theta: coefficients [B, Np + 1, O] and vectors [B, K, Np] -> [B, K, O], theta's dtype."""
    with torch.autocast(theta.device.type, enabled=False):
        return vectors.to(theta.dtype) @ theta[:, :-1] + theta[:, -1:]
