"""What `method=compose` chooses from a folder, beside every choice of networks that was made by hand."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from recombine.core.types import Row
from recombine.pnc.claims import gain_over
from recombine.report.registry import register_derived

__all__ = ["derive_choices"]

AVERAGE = "accuracy_average"


def derive_choices(rows: Sequence[Row]) -> list[Row]:
    """A row for each target and set of classes whose networks were chosen both ways.

    gain_over_best, gain_over_worst: the average of what was chosen above that of the best and the worst choice by hand,
    which are found by test images, as no user could; each with its 95 % interval over test images. choices: by hand.
    """
    groups: dict[tuple, list[Row]] = defaultdict(list)
    for row in rows:
        if row.status == "ok" and "networks" in row.cell and AVERAGE in row.metrics:
            classes = tuple(sorted(str(row.cell["clone"]).split(" + ")))
            groups[str(row.cell["target"]), classes, row.seed].append(row)
    made = []
    for group in groups.values():
        chosen = [row for row in group if row.cell["networks"] == "all"]
        by_hand = sorted((row for row in group if row.cell["networks"] != "all"), key=lambda row: row.metrics[AVERAGE])
        if chosen and by_hand:
            made.append(_compare(chosen[0], by_hand[-1], by_hand[0], len(by_hand)))
    return made


def _compare(chosen: Row, best: Row, worst: Row, count: int) -> Row:
    metrics = {AVERAGE: chosen.metrics[AVERAGE], "choices": float(count)}
    for name, other in (("best", best), ("worst", worst)):
        metrics |= gain_over(f"gain_over_{name}", chosen, other) | {f"{name}_by_hand": other.metrics[AVERAGE]}
    return replace(chosen, metrics=metrics, series={})


register_derived("pnc_choices", derive_choices)
