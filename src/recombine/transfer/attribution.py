"""What of a gain is the teacher's, over independently trained networks; and what that says of the paper's claims."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import binomtest

from recombine.core.paired import mean_over_checkpoints
from recombine.core.types import Row
from recombine.models.registry import PRETRAINED
from recombine.report.evidence import Evidence, interval_metrics
from recombine.report.registry import register_derived

__all__ = ["derive_attribution", "derive_claims"]

WHERE = ("dataset", "fraction", "split")
EQUAL = 0.5
"""Teachers whose mean accuracy differs by less than this many points are equal to their students."""
DISCORDANT = {"gain_over_xe": "differs_from_xe", "gain_over_self_dist": "differs_from_self_dist"}
MEANS = ("accuracy_before", "accuracy_gap", "transfer_delta_xe", "transfer_rate_strict", "transfer_rate_strict_xe")


class Group(NamedTuple):
    """Rows of one kind of student, kind of teacher and method, by the pair of networks."""

    where: dict[str, Any]
    student: str
    teacher: str
    method: str
    pairs: Mapping[tuple[str, str], list[Row]]

    def values(self, metric: str) -> dict[tuple[str, str], float]:
        """Of each pair of networks that has the metric, mean over seeds."""
        found = {
            pair: [row.metrics[metric] for row in rows if metric in row.metrics] for pair, rows in self.pairs.items()
        }
        return {pair: float(np.mean(numbers)) for pair, numbers in found.items() if numbers}

    def mean(self, metric: str) -> float:
        """Over its pairs; nan without one."""
        numbers = list(self.values(metric).values())
        return float(np.mean(numbers)) if numbers else float("nan")

    @property
    def side(self) -> str:
        """Of its teachers, by their mean accuracy."""
        gap = self.mean("accuracy_gap")
        return "equal" if abs(gap) < EQUAL else "stronger" if gap > 0 else "weaker"

    def interval(self, metric: str) -> tuple[float, float, float] | None:
        """Mean with its interval over networks and images; None for a metric that its rows lack."""
        differences = self.values(metric)
        if metric == "transfer_delta":
            gain, loss = (self.values(f"knowledge_{side}") for side in ("gain", "loss"))
            discordant = {pair: gain[pair] + loss[pair] for pair in gain}
        else:
            discordant = self.values(DISCORDANT[metric])
        images = self.values("images")
        if not differences:
            return None
        differ = [discordant[pair] for pair in differences]
        return mean_over_checkpoints(list(differences.values()), differ, int(min(images.values())))


def kind(name: Any) -> str:
    """Networks that differ in their seed alone are of one kind."""
    parts = PRETRAINED.fullmatch(str(name))
    return f"{parts['model']}-{parts['dataset']}" if parts else str(name)


def groups(rows: Iterable[Row]) -> list[Group]:
    """Rows with images to test on, by kind of student, kind of teacher and method."""
    found: dict[tuple, dict[tuple[str, str], list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row.status == "ok" and "images" in row.metrics and {"student", "teacher"} <= row.cell.keys():
            where = tuple((key, row.cell.get(key)) for key in WHERE)
            pair = str(row.cell["student"]), str(row.cell["teacher"])
            found[where, *map(kind, pair), str(row.cell["method"])][pair].append(row)
    return [Group(dict(key[0]), key[1], key[2], key[3], pairs) for key, pairs in found.items()]


def derive_attribution(rows: Sequence[Row]) -> list[Row]:
    """One row for each kind of student, kind of teacher and method: means over independently trained networks.

    The delta and the delta minus that of each control come with 95 % intervals over networks and images.
    """
    made = []
    for group in groups(rows):
        metrics = {name: group.mean(name) for name in MEANS}
        for name in ("transfer_delta", *DISCORDANT):
            metrics |= interval_metrics(name, group.interval(name))
        metrics |= {"networks": len({student for student, _ in group.pairs}), "steps": group.mean("steps")}
        cell = {**group.where, "student": group.student, "teacher": f"{group.teacher} ({group.side})"}
        known = {name: value for name, value in metrics.items() if np.isfinite(value)}
        made.append(Row(cell={**cell, "method": group.method}, metrics=known, entry="transfer", run="derived"))
    return made


def derive_claims(rows: Sequence[Row]) -> list[Row]:
    """The paper's claims with what our rows say of them: a row for each claim, data set and kind of student."""
    by_student: dict[tuple, list[Group]] = defaultdict(list)
    for group in groups(rows):
        by_student[tuple(group.where.items()), group.student].append(group)
    made = []
    for (where, student), mine in by_student.items():
        for evidence in _claims(mine):
            cell = {**dict(where), "student": student, "claim": evidence.text, "verdict": evidence.verdict}
            metrics = interval_metrics("effect", evidence.interval) if evidence.verdict != "not tested" else {}
            metrics = {**metrics, "networks": float(evidence.networks)}
            made.append(Row(cell=cell, metrics=metrics, entry="transfer", run="derived"))
    return made


def _claims(mine: Sequence[Group]) -> list[Evidence]:
    """Those of the paper's nine that transfer rows can speak of; the words say what is measured."""

    def of(method: str, side: str, metric: str, text: str, sign: int = 1) -> Evidence:
        """The group of this method whose teachers are on this side, see `_pick`."""
        found = _pick(mine, method, side)
        return Evidence(text, sign, found and found.interval(metric), len(found.pairs) if found else 0)

    strict = "transfer_rate_strict"
    return [
        _flips(mine),
        of("kl", "weaker", "transfer_delta", "2 KL harms with a weaker teacher: its delta", -1),
        _between(mine, ("xekl_mcl", "kl"), "weaker", "3 MCL helps with a weaker teacher: its delta minus KL's"),
        _between(mine, ("xekl_mcl", "kl"), "stronger", "3 MCL gains less from a stronger one: delta minus KL's", -1),
        of("kl_dp", "weaker", "transfer_delta", "4 DP gains from a weaker teacher: its delta"),
        of("kl_dp", "stronger", "transfer_delta", "4 DP gains from a stronger teacher: its delta"),
        of("kl_dp", "weaker", "gain_over_xe", "4 ... and the gain is a weaker teacher's: delta minus fine-tuning's"),
        of("kl_dp", "stronger", "gain_over_xe", "4 ... and the gain is a stronger one's: delta minus fine-tuning's"),
        _rates(mine, "stronger", "5 DP moves the teacher's own knowledge: strict rate minus fine-tuning's", strict),
        Evidence("6 Larger students gain more: not tested, one size of student", 1, None, 0),
        _between(
            mine, ("kl_dp_u", "kl_dp"), "stronger", "7 DP without labels gains at most 0.1 less: its delta minus DP's"
        )._replace(margin=0.1),
        Evidence("8 In turn beats at once beats soup: not tested here, see multi_teacher/combine", 1, None, 0),
        of(
            "batchnorm-adapt/kl_dp",
            "stronger",
            "transfer_delta",
            "9 DP that adapts BatchNorm loses: its delta",
            -1,
        ),
    ]


def _pick(mine: Sequence[Group], method: str, side: str) -> Group | None:
    """Of several kinds of teacher on a side that with most pairs; of equals, the one furthest from its students."""
    names = {method, f"short/{method}"}
    found = [group for group in mine if group.method in names and group.side == side]
    return max(found, key=lambda group: (len(group.pairs), abs(group.mean("accuracy_gap"))), default=None)


def _flips(mine: Sequence[Group]) -> Evidence:
    """The pair with least complementary knowledge: one below 2 % is enough against the claim.

    Its interval is over images (Clopper and Pearson), wide enough for the least of all pairs (Bonferroni).
    """
    text = "1 Every pair has ρ_pos of 2 % or more: the least of all pairs, minus 2"
    counts = {pair: count for group in mine for pair, count in group.values("images").items()}
    shares = {pair: share for group in mine for pair, share in group.values("positive_flips_before").items()}
    if not counts:
        return Evidence(text, 1, None, 0)
    least, images = min((shares[pair], int(count)) for pair, count in counts.items())
    interval = binomtest(round(least / 100 * images), images).proportion_ci(1 - 0.05 / len(counts))
    return Evidence(text, 1, (least - 2, 100 * interval.low - 2, 100 * interval.high - 2), len(counts))


def _between(mine: Sequence[Group], methods: tuple[str, str], side: str, text: str, sign: int = 1) -> Evidence:
    """One method's delta minus another's, by pair; the interval is over networks alone."""
    first, second = (_pick(mine, method, side) for method in methods)
    if first is None or second is None:
        return Evidence(text, sign, None, 0)
    return _over_networks(first.values("transfer_delta"), second.values("transfer_delta"), text, sign)


def _rates(mine: Sequence[Group], side: str, text: str, metric: str) -> Evidence:
    """A rate minus that of the control; the interval is over networks alone."""
    found = _pick(mine, "kl_dp", side)
    return (
        _over_networks(found.values(metric), found.values(f"{metric}_xe"), text, 1)
        if found
        else Evidence(text, 1, None, 0)
    )


def _over_networks(first: Mapping, second: Mapping, text: str, sign: int) -> Evidence:
    differences = [first[pair] - second[pair] for pair in first if pair in second]
    interval = mean_over_checkpoints(differences) if differences else None
    return Evidence(text, sign, interval, len(differences))


register_derived("transfer_attribution", derive_attribution)
register_derived("transfer_claims", derive_claims)
