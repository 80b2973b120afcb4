"""How alike two networks behave around the same images: the cosine of their local linear models."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor
from torch.nn import functional as F

from recombine.core.errors import ConfigError
from recombine.pnc.local.neighbourhood import Neighbourhood, Purpose, View
from recombine.pnc.local.surrogates import fit_linear_models

__all__ = ["fit_coefficients", "similarity"]


def similarity(a: Tensor, b: Tensor) -> Tensor:
    """Sim = cos(vec a, vec b) in [-1, 1], 0-d, of coefficients [N, Np + 1, O] without their intercepts.

    Both are of the same images, vectors and classes, in the same order. Ours: the paper's formula is not known to us,
    and 1 - cosine is one of the distances between models in Zest (Jia et al., ICLR 2022). ValueError if shapes differ.
    """
    if a.shape != b.shape:
        raise ValueError(f"coefficients of shapes {tuple(a.shape)} and {tuple(b.shape)} are not of the same models")
    return F.cosine_similarity(a[:, :-1].double().flatten(), b[:, :-1].double().flatten(), dim=0)


def fit_coefficients(
    net: Callable[[Tensor], Tensor],
    view: View,
    index: Tensor,
    settings: Neighbourhood,
    seed: int,
    *,
    count: int,
    columns: Sequence[int] | None = None,
) -> Tensor:
    """Coefficients float64 [B, Np + 1, O] of `net`'s outputs `columns` (all if None), for `similarity`.

    `net` maps normalised images to logits and must be in eval mode; `view` of B images at positions
    `index` [B] of their split. Two networks with one seed see the same `count` vectors of each image, also where
    their input sizes differ. ConfigError if `count` is too small to fit.
    """
    if count < (least := 2 * (settings.patches + 1)):
        raise ConfigError(f"similarity.vectors={count}: at least {least} are needed; try similarity.vectors={least}")
    vectors = settings.draw((seed, 0, Purpose.SIMILARITY), index, count, view)
    return fit_linear_models(net, view, vectors, settings, columns=columns)
