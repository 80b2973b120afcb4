"""Two networks on the same images: how much more one gets right, and how sure that is."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import binomtest, norm, t

__all__ = ["Paired", "compare_paired", "mean_over_checkpoints"]


class Paired(NamedTuple):
    """A difference in accuracy, in points, with its 95 % interval over images."""

    difference: float
    low: float
    high: float
    p: float
    """Two-sided, of McNemar's exact test."""
    discordant: float
    """Images on which exactly one of the two is right, percent."""

    def metrics(self, name: str) -> dict[str, float]:
        """As metrics of a row: the difference is called `name`."""
        return {name: self.difference, f"{name}_low": self.low, f"{name}_high": self.high, f"{name}_p": self.p}


def compare_paired(first: ArrayLike, second: ArrayLike, confidence: float = 0.95) -> Paired:
    """What `first` gets right beyond `second`, from bool [n] each.

    Of n images, b are right in `first` alone and c in `second` alone. The interval is Bonett and Price's (2012), which
    holds its 95 % from small n on, also where all differences go one way: with d = (b - c) / (n + 2) and
    s = (b + c + 2) / (n + 2) it is d +- z sqrt((s - d^2) / (n + 2)). The test is McNemar's exact one, of b among b + c.
    They agree but for cases near 0.05, where the exact test is the more careful.
    """
    first, second = np.asarray(first, bool), np.asarray(second, bool)
    images, better, worse = len(first), int((first & ~second).sum()), int((second & ~first).sum())
    differ = better + worse
    centre, share = (better - worse) / (images + 2), (differ + 2) / (images + 2)
    half = norm.ppf((1 + confidence) / 2) * np.sqrt((share - centre**2) / (images + 2))
    low, high = (100 * float(np.clip(end, -1, 1)) for end in (centre - half, centre + half))
    p = float(binomtest(better, differ).pvalue) if differ else 1.0
    return Paired(100 * (better - worse) / images, low, high, p, 100 * differ / images)


def mean_over_checkpoints(
    differences: ArrayLike, discordant: ArrayLike | None = None, images: int = 0, confidence: float = 0.95
) -> tuple[float, float, float]:
    """Mean difference in points over independently trained networks, and its interval over networks and images.

    `differences` [K] in points and `discordant` [K] in percent are those of `compare_paired` on the same n images. The
    half-width is sqrt(a^2 + b^2) with a = t sd / sqrt(K) over the networks (Student's t with K - 1 degrees), and
    b = t' sqrt(mean v), v = (discordant - difference^2 / 100) / n that of one network over images: all see the same
    images, so b does not shrink with K. Without `discordant` the interval is over networks alone. Its ends are nan
    for fewer than two networks: one cannot tell how much networks differ.
    """
    d = np.asarray(differences, float) / 100
    tail, over_images = (1 + confidence) / 2, 0.0
    if discordant is not None:
        variance = np.asarray(discordant, float) / 100 - d**2
        over_images = t.ppf(tail, images - 1) * np.sqrt(variance.mean() / images)
    over_networks = t.ppf(tail, len(d) - 1) * d.std(ddof=1) / np.sqrt(len(d)) if len(d) > 1 else np.nan
    mean, half = float(d.mean()), float(np.hypot(over_images, over_networks))
    return 100 * mean, 100 * (mean - half), 100 * (mean + half)
