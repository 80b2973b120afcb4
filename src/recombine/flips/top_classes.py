"""Which few classes hold how much of a count by class, such as of flips or gains."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["count_top_classes", "select_top_classes"]


def count_top_classes(counts: ArrayLike, percent: ArrayLike, *, legacy: bool = False) -> NDArray[np.int64]:
    """The smallest number of classes of counts [..., C] that together hold `percent` % of them; 0 without counts.

    Several percentages [P] give [P, ...]. Deviation: the authors' code of Fantastic Gains counts one class too many (it
    increments after testing); `legacy` does the same.
    """
    counts = np.asarray(counts)
    held = np.cumsum(np.sort(counts, axis=-1)[..., ::-1], axis=-1, dtype=np.int64)
    total = held[..., -1:]
    numbers = []
    for each in np.atleast_1d(percent):
        short = (held * 100 < each * total).sum(axis=-1)
        numbers.append(np.minimum(np.where(total[..., 0] > 0, short + 1 + legacy, 0), counts.shape[-1]))
    return np.stack(numbers) if np.ndim(percent) else numbers[0]


def select_top_classes(counts: ArrayLike, percent: float, *, legacy: bool = False) -> NDArray[np.int64]:
    """The classes that `count_top_classes` counts, most first; `counts` is [C].

    Of classes with equal counts, those with lower labels come first; with `legacy` those with higher ones, as in the
    authors' code, which turns an ascending order round.
    """
    counts = np.asarray(counts)
    number = int(count_top_classes(counts, percent, legacy=legacy))
    order = np.argsort(counts, kind="stable")[::-1] if legacy else np.argsort(-counts, kind="stable")
    return order[:number]
