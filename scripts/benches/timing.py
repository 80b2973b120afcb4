"""Timing two ways of doing the same, in turns, on a machine that others use too."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from recombine.core.types import Row

__all__ = ["clock", "compare", "now", "the_device"]


def compare(case: str, ours: Callable[[], float], baseline: Callable[[], float], unit: str, rounds: int = 7) -> Row:
    """Time `ours` and `baseline`, which return seconds, in turns after one warm-up each.

    The row has the medians in ms and `speedup`, the median of baseline / ours over neighbours: they share the machine's
    momentary load, so their ratio is steadier than that of the medians. 2 means a speedup of 2 over the baseline.
    """
    ours(), baseline()
    pairs = []
    for number in range(rounds):
        first, second = (ours, baseline) if number % 2 == 0 else (baseline, ours)
        one, two = first(), second()
        pairs.append((one, two) if first is ours else (two, one))
    return Row(
        cell={"case": case, "unit": unit},
        metrics={
            "speedup": statistics.median(two / one for one, two in pairs),
            "ours": 1e3 * statistics.median(one for one, _ in pairs),
            "baseline": 1e3 * statistics.median(two for _, two in pairs),
        },
    )


def the_device() -> torch.device:
    """CUDA where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def clock(device: torch.device) -> str:
    """What `now` counts, for units."""
    return "ms" if device.type == "cuda" else "CPU ms"


def now(device: torch.device) -> float:
    """Seconds of the device's clock: wall time where it is CUDA, else only what this process used."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()
