"""Which few classes hold how much of a count by class, such as of flips or gains."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["count_top_classes", "select_top_classes"]


def count_top_classes(counts: ArrayLike, percent: float, *, legacy: bool = False) -> NDArray[np.int64]:
    """The smallest number of classes of counts [..., C] that together hold `percent` % of them; 0 without counts.

    Deviation: the authors' code of Fantastic Gains counts one class too many (it increments after testing); `legacy`
    does the same.
    """
    counts = np.asarray(counts)
    held = np.cumsum(-np.sort(-counts, axis=-1), axis=-1)
    total = held[..., -1:]
    short = (held * 100 < percent * total).sum(axis=-1)
    number = np.where(total[..., 0] > 0, short + 1 + legacy, 0)
    return np.minimum(number, counts.shape[-1])


def select_top_classes(counts: ArrayLike, percent: float, *, legacy: bool = False) -> NDArray[np.int64]:
    """The classes that `count_top_classes` counts, most first (ties: lower label first); `counts` is [C]."""
    counts = np.asarray(counts)
    return np.argsort(-counts, kind="stable")[: int(count_top_classes(counts, percent, legacy=legacy))]
