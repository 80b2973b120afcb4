"""What one network gains over another on the same images, with its interval. No torch here: reports use it too."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["gain", "pack", "unpack"]

RESAMPLES = 10_000
"""Of the bootstrap over images."""


def gain(name: str, ours: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> dict[str, float]:
    """What one network's mean accuracy gains over another's, in points, and its 95 % interval: `name`, _low, _high.

    `ours` and `others`: hits bool [N] of both on the same images, of each group (old and new classes); the mean is over
    groups. The interval is that of the percentile bootstrap over images, drawn within each group: a draw of differences
    -1, 0, 1 is a draw of how often each comes.
    """
    random = np.random.default_rng(0)
    total, mean = np.zeros(RESAMPLES), 0.0
    for one, other in zip(ours, others, strict=True):
        difference = np.asarray(one, int) - np.asarray(other, int)
        counts = np.bincount(difference + 1, minlength=3)
        draws = random.multinomial(len(difference), counts / counts.sum(), size=RESAMPLES)
        total += 100 * (draws[:, 2] - draws[:, 0]) / len(difference) / len(ours)
        mean += 100 * float(difference.mean()) / len(ours)
    low, high = np.quantile(total, (0.025, 0.975))
    return {name: mean, f"{name}_low": float(low), f"{name}_high": float(high)}


def pack(hits: np.ndarray) -> str:
    """Hits bool [N] as text: N, then a bit an image as a hexadecimal number, the first one highest."""
    return f"{len(hits)}:{np.packbits(np.asarray(hits, bool)).tobytes().hex()}"


def unpack(text: str) -> np.ndarray:
    """Hits bool [N] of `pack`."""
    count, _, digits = text.partition(":")
    return np.unpackbits(np.frombuffer(bytes.fromhex(digits), np.uint8), count=int(count)).astype(bool)
