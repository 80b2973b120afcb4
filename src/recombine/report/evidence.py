"""What rows say of a claim: an effect with its interval, and the verdict."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Evidence", "interval_metrics"]

Interval = tuple[float, float, float]
"""An effect, and the ends of its 95 % interval."""
AT_LEAST = 3
"""Independently trained networks that a verdict needs."""


def interval_metrics(name: str, interval: Interval | None) -> dict[str, float]:
    """As metrics of a row: `name`, _low, _high; none without an interval."""
    return dict(zip((name, f"{name}_low", f"{name}_high"), interval, strict=True)) if interval else {}


class Evidence(NamedTuple):
    """An effect that a claim says is positive, or negative, with its interval."""

    text: str
    sign: int
    """1: the claim says that it is above 0. -1: below."""
    interval: Interval | None
    networks: int
    margin: float = 0.0
    """By how much it may miss 0 all the same; negative: by how much it must pass 0."""

    @property
    def verdict(self) -> str:
        """holds or contradicted where the interval leaves out 0 (or its margin), else not shown; or not tested."""
        if self.interval is None or self.networks < AT_LEAST:
            return "not tested"
        _, low, high = (self.sign * value for value in self.interval)
        low, high = min(low, high), max(low, high)
        return "holds" if low > -self.margin else "contradicted" if high < -self.margin else "not shown"
