"""The neighbourhood of an image, made by blanking patches, and linear models fitted in it (the manner of LIME).

A vector b in {0, 1}^Np marks which of the Np patches of an image are present; g(b) = [b, 1] theta is a linear model of
a network's outputs for the image with the other patches blanked. That the paper measures local behaviour like this
is our reading, made without its text; functions state what is from LIME (Ribeiro et al., KDD 2016) and what is ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import IntEnum
from typing import Any, NamedTuple

import torch
from torch import Tensor

from recombine.core.counter_rng import bits
from recombine.core.errors import ConfigError
from recombine.models.model import Preprocess
from recombine.pnc.local.segments import segment_colours
from recombine.pnc.settings import LimeSettings

__all__ = [
    "KERNELS",
    "OUTPUTS",
    "Neighbourhood",
    "Purpose",
    "View",
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


class View(NamedTuple):
    """Images as one network takes them, and what is blanked together in them."""

    images: Tensor
    """Normalised [B, 3, H, W]."""
    labels: Tensor | None = None
    """The segment of each pixel, int64 [B, H, W]; None: the patches of a grid."""
    counts: Tensor | None = None
    """How many segments each image has, int64 [B]; None: all have Np."""
    black: Tensor | None = None
    """A black pixel, normalised [1, 3, 1, 1]."""

    def split(self, rows: int) -> list[View]:
        """Views of at most so many images."""
        images = self.images.split(rows)
        if self.labels is None or self.counts is None:
            return [View(part, black=self.black) for part in images]
        parts = zip(images, self.labels.split(rows), self.counts.split(rows), strict=True)
        return [View(*part, self.black) for part in parts]


def proximity(vectors: Tensor, sigma: float, counts: Tensor | None = None) -> Tensor:
    """How much a blanked image counts: [..., Np] -> float32 [...], 1 with all patches present and 0 with none.

    pi_b = sqrt(exp(-d^2 / sigma^2)), d = 1 - cos(b, 1) = 1 - sqrt(|b|_1 / Np): LIME's default for images. Not stated
    by the paper; ours: pi_0 = 0, as the cosine of an empty b is not defined. `counts`, broadcast to [...]: the segments
    of each image, where these are fewer than Np; those that it does not have are present in its vectors.
    """
    patches = vectors.shape[-1]
    lacking = 0 if counts is None else patches - counts
    present = (vectors.sum(-1) - lacking) / (patches - lacking)
    distance = 1 - present.sqrt()
    return torch.exp(-(distance**2) / (2 * sigma**2)) * (present > 0)


KERNELS: dict[str, Callable[[Tensor, float, Tensor | None], Tensor]] = {
    "lime": proximity,
    "uniform": lambda vectors, sigma, counts: torch.ones(vectors.shape[:-1], device=vectors.device),
}
"""`uniform` weighs all vectors alike, the empty one too, as Zest does (Jia et al., ICLR 2022)."""

OUTPUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "logit": lambda logits: logits,
    "prob": lambda logits: logits.softmax(-1),
}


class Neighbourhood(LimeSettings):
    """The settings of a `lime` node, with what they make of vectors and logits."""

    def find_segments(self, index: Tensor, images: Tensor) -> Tensor | None:
        """The segments of uint8 images [B, 3, h, w] at positions `index` [B], as `Segments` are."""
        return None if self.segment == "grid" else segment_colours(images, self.grid)

    def view(self, images: Tensor, preprocess: Preprocess, labels: Tensor | None) -> View:
        """uint8 images [B, 3, h, w] and their segments as the network of `preprocess` takes them."""
        black = preprocess.offset
        if labels is None:
            return View(preprocess(images), black=black)
        counts, shown = labels.flatten(1).amax(1).long() + 1, labels[:, None]
        if shown.shape[-2:] != (preprocess.size, preprocess.size):
            shown = preprocess.fit(shown, "nearest")
        return View(preprocess(images), shown[:, 0].long(), counts, black)

    def draw(self, address: tuple[int, int, Purpose], index: Tensor, count: int, view: View) -> Tensor:
        """`draw_vectors` for a view; segments that an image does not have are present."""
        vectors = draw_vectors(address, index, count, self.patches)
        if view.counts is None:
            return vectors
        return vectors | (torch.arange(self.patches, device=index.device) >= view.counts[:, None])[:, None]

    def blank(self, view: View, vectors: Tensor) -> Tensor:
        """Normalised images [B * K, 3, H, W] of a view, for bool vectors [B, K, Np]."""
        return blank(view.images, vectors, self.fill, view.labels, view.black)

    def weights(self, vectors: Tensor, counts: Tensor | None = None) -> Tensor:
        """pi_b of vectors [B, K, Np], float32 [B, K]; `counts` [B] of a view."""
        return KERNELS[self.kernel](vectors, self.sigma, counts if counts is None else counts[:, None])

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


def blank(
    images: Tensor,
    vectors: Tensor,
    fill: str = "mean",
    labels: Tensor | None = None,
    black: Tensor | None = None,
) -> Tensor:
    """Normalised images [B, 3, H, W] with the patches where b_j = 0 filled: [B * K, 3, H, W] for bool [B, K, Np].

    Patches are numbered row by row. `fill`: mean is 0, the mean colour that the network's preprocessing subtracts;
    patch_mean the mean colour of each patch, as LIME does; zero_pixel `black` [1, 3, 1, 1]. Row y belongs to patch row
    floor(y grid / H), so patches differ by at most a pixel where the grid does not divide the side. `labels` int64
    [B, H, W]: segments in place of the patches, such as the super-pixels of LIME and Zest. ConfigError if the grid is
    finer than the pixels.
    """
    if labels is not None:
        place = labels.flatten(1)
        shown = vectors.gather(2, place[:, None].expand(-1, vectors.shape[1], -1)).unflatten(2, labels.shape[1:])
    else:
        place, shown = _grid_patches(images, vectors)
    if fill == "mean":
        return (images[:, None] * shown[:, :, None]).flatten(0, 1)
    if fill == "zero_pixel":
        assert black is not None
        return torch.where(shown[:, :, None], images[:, None], black[:, None]).flatten(0, 1)
    inside = torch.nn.functional.one_hot(place, vectors.shape[-1]).to(images.dtype)
    means = images.flatten(2) @ (inside / inside.sum(-2, keepdim=True).clamp(min=1))
    filled = means.gather(2, place[:, None].expand(-1, 3, -1)) if labels is not None else means[:, :, place]
    return torch.where(shown[:, :, None], images[:, None], filled.view_as(images)[:, None]).flatten(0, 1)


def _grid_patches(images: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """The patch of each pixel [H * W], and whether it is shown [B, K, H, W]."""
    grid, (height, width) = math.isqrt(vectors.shape[-1]), images.shape[-2:]
    if grid > min(height, width):
        most = min(height, width)
        raise ConfigError(f"lime.grid={grid}: images of {height} x {width} px allow lime.grid={most} at most")
    rows, columns = (torch.arange(side, device=images.device) * grid // side for side in (height, width))
    shown = vectors.unflatten(-1, (grid, grid))[:, :, rows[:, None], columns]
    return (rows[:, None] * grid + columns).flatten(), shown


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
