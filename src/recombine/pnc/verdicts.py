"""What the rows of cloning say of the paper's claims, over independently trained pairs of networks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from recombine.core.paired import mean_over_checkpoints
from recombine.core.types import Row
from recombine.pnc.claims import TASK, compare_clones, name_pairs
from recombine.report.evidence import Evidence, interval_metrics
from recombine.report.registry import register_derived

__all__ = ["derive_verdicts"]

PAIR = ("target", "source")
CLAIMS = (
    ("1 More than 5 points above tuning: average minus that of the best tuned network", "gain_over_tuning", 1, -5.0),
    ("2 At least 5 points above continual learning: minus the better of LwF and EWC", "gain_over_continual", 1, -5.0),
    ("3 Loses at most half as many old answers as tuning: half of its loss minus ours", "lost_below_half", 1, 0.0),
    ("4 30 % of the images do: with all of them at most 1 point more", "gain_of_all_images", -1, 1.0),
    ("5 The branch gives more than a linear probe: minus the probe", "gain_over_probe", 1, 0.0),
    ("6 It is the source's knowledge: minus a source of random weights", "gain_over_reinitialised", 1, 0.0),
    ("7 It is the choice of filters: minus filters by chance", "gain_over_random", 1, 0.0),
)
"""What is claimed, the metric of `compare_clones` that measures it, its sign and margin (`Evidence`)."""


def derive_verdicts(rows: Sequence[Row]) -> list[Row]:
    """A row for each claim and kind of pair: the mean effect over pairs of networks, its interval, and the verdict."""
    groups: dict[tuple, dict[tuple, list[Row]]] = defaultdict(lambda: defaultdict(list))
    clones = compare_clones(rows)
    for row, named in zip(clones, name_pairs(clones), strict=True):
        where = tuple((key, named.cell.get(key)) for key in (*TASK, "classes"))
        groups[where][tuple(str(row.cell[key]) for key in PAIR)].append(row)
    return [_judge(dict(where), pairs, *claim) for where, pairs in groups.items() for claim in CLAIMS]


def _judge(where: dict, pairs: dict[tuple, list[Row]], text: str, metric: str, sign: int, margin: float) -> Row:
    found = [[row for row in rows if metric in row.metrics] for rows in pairs.values()]
    found = [rows for rows in found if rows]
    evidence = Evidence(text, sign, effect(found, metric) if found else None, len(found), margin)
    known = evidence.interval if evidence.verdict != "not tested" else None
    metrics = {**interval_metrics("effect", known), "networks": float(evidence.networks)}
    return Row({**where, "claim": text, "verdict": evidence.verdict}, metrics, entry="pnc", run="derived")


def effect(pairs: Sequence[Sequence[Row]], metric: str) -> tuple[float, float, float]:
    """Mean over pairs of networks and its interval: over pairs (Student's t) and, where known, over test images.

    Both half-widths are added as squares; all pairs see the same images, so that theirs does not shrink with pairs.
    """
    values = [float(np.mean([row.metrics[metric] for row in rows])) for rows in pairs]
    mean, low, high = mean_over_checkpoints(values)
    rows = [row for each in pairs for row in each]
    ends = [(row.metrics.get(f"{metric}_low"), row.metrics.get(f"{metric}_high")) for row in rows]
    halves = [(upper - lower) / 2 for lower, upper in ends if lower is not None and upper is not None]
    over_images = float(np.sqrt(np.mean(np.square(halves)))) if len(halves) == len(rows) else 0.0
    half = float(np.hypot((high - low) / 2, over_images))
    return mean, mean - half, mean + half


register_derived("pnc_verdicts", derive_verdicts)
