"""Plots of transfer rows alone: what helps, by how much, and for whom. Every function returns a matplotlib Figure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from src.core.errors import ConfigError
from src.core.types import Row
from src.report.layout import natural
from src.report.style import GREY, INK, SERIES, measured, styled

__all__ = ["gap_curve", "gap_table", "leaderboard", "outlook", "rate_by_size", "stages", "success_rates"]
__all__ += ["pair_deltas", "transfer_rates"]

ORDER = ("xe", "self_dist", "ensemble", "kl", "xekl", "xekl_mcl", "kl_dp", "kl_dp_u", "bi_kd", "cd", "crd")
NAMES = {
    "xe": "fine-tuning",
    "kl": "KL",
    "xekl": "XE-KL",
    "xekl_mcl": "XE-KL+MCL",
    "kl_dp": "KL+DP",
    "kl_dp_u": "KL+DP unsupervised",
    "self_dist": "self-distillation",
    "bi_kd": "Bi-KD",
    "cd": "CD",
    "crd": "CRD",
}
BINS = 8
"""Of the accuracy gap, equal in width, as in the paper."""
DIVERGED = -10
"""Students with a mean delta at or below this are left out of success rates, as in the paper."""
CURVES = {"transfer_delta": "delta", "knowledge_gain": "gain", "knowledge_loss": "loss"}
SHARES = (2, 5, 20, 50, 100)
TICKS = (-20, -10, -5, -2, -1, -0.5, -0.2, -0.1, 0, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20)


def frame_of(rows: Sequence[Row], *metrics: str) -> pd.DataFrame:
    """One line per student, teacher and method, mean over seeds."""
    found = measured([row for row in rows if {"student", "teacher", "method"} <= row.cell.keys()], metrics)
    keys = ["student", "teacher", "method"]
    lines = [{**{k: row.cell[k] for k in keys}, **{m: row.metrics[m] for m in metrics}} for row in found]
    return pd.DataFrame(lines).groupby(keys, as_index=False).mean()


def methods_in(frame: pd.DataFrame) -> dict[str, str]:
    """The methods of a frame in a fixed order, each with its colour."""
    known = sorted(frame["method"].unique(), key=lambda m: (ORDER.index(m) if m in ORDER else 99, m))
    return {method: SERIES[i % len(SERIES)] for i, method in enumerate(known)}


def gap_table(frame: pd.DataFrame, bins: int = BINS) -> pd.DataFrame:
    """By method and bin of the accuracy gap: mean, quartiles, and the mean of the best quarter of deltas (fig. 4b)."""
    low, high = frame["accuracy_gap"].min(), frame["accuracy_gap"].max()
    edges = np.linspace(low, max(high, low + 1e-9), bins + 1)
    place = np.clip(np.digitize(frame["accuracy_gap"], edges) - 1, 0, bins - 1)
    lines = []
    for (method, b), part in frame.assign(bin=place).groupby(["method", "bin"]):
        deltas = part["transfer_delta"]
        first, third = deltas.quantile([0.25, 0.75])
        best = deltas[deltas >= third].mean()
        centre = (edges[int(b)] + edges[int(b) + 1]) / 2
        line = {"mean": deltas.mean(), "first": first, "third": third, "best": best, "n": len(deltas)}
        lines.append({"method": method, "gap": centre, **line})
    return pd.DataFrame(lines)


@styled
def gap_curve(rows: Sequence[Row]) -> Figure:
    """Transfer delta against the accuracy gap: every pair, and by bin the mean, quartiles and best quarter's mean."""
    frame = frame_of(rows, "transfer_delta", "accuracy_gap")
    table = gap_table(frame, BINS if len(frame.groupby(["student", "teacher"])) >= 4 * BINS else 4)
    methods = methods_in(frame)
    figure = Figure(figsize=(2.5 * len(methods) + 1, 3.6), layout="constrained")
    panels = figure.subplots(1, len(methods), sharex=True, sharey=True, squeeze=False)[0]
    for axes, (method, colour) in zip(panels, methods.items(), strict=True):
        points, curve = frame[frame["method"] == method], table[table["method"] == method]
        _cross(axes)
        axes.scatter(points["accuracy_gap"], points["transfer_delta"], s=16, color=colour, alpha=0.45, linewidth=0)
        axes.fill_between(curve["gap"], curve["first"], curve["third"], color=colour, alpha=0.15, linewidth=0)
        axes.plot(curve["gap"], curve["mean"], color=colour, marker="o", markersize=4, label="mean, quartiles")
        axes.plot(curve["gap"], curve["best"], color=colour, linestyle=(0, (3, 2)), label="best quarter")
        axes.set_title(NAMES.get(method, method), size=9.5)
        axes.set_xlabel("gap (points)")
    panels[0].set_ylabel("transfer delta (points)")
    panels[0].legend(loc="best", fontsize=8)
    return figure


@styled
def success_rates(rows: Sequence[Row]) -> Figure:
    """Share of teachers that help, over students; the median is what the paper reports (figure 4a)."""
    frame = frame_of(rows, "transfer_delta")
    frame = frame.assign(success=100.0 * (frame["transfer_delta"] > 0))
    by_student = frame.groupby(["method", "student"], as_index=False)[["success", "transfer_delta"]].mean()
    methods = methods_in(frame)
    figure = Figure(figsize=(6.4, 1.3 + 0.5 * len(methods)), layout="constrained")
    axes = figure.subplots()
    for place, (method, colour) in enumerate(methods.items()):
        mine = by_student[by_student["method"] == method]
        kept = mine[mine["transfer_delta"] > DIVERGED]["success"]
        if kept.empty:
            continue
        first, median, third = kept.quantile([0.25, 0.5, 0.75])
        axes.barh(place, third - first, 0.5, first, color=colour, alpha=0.25)
        axes.plot([median, median], [place - 0.25, place + 0.25], color=colour, linewidth=3)
        axes.scatter(kept, np.full(len(kept), place), s=18, color=colour, zorder=3, alpha=0.7)
        left_out = len(mine) - len(kept)
        note = f"{median:.1f} %" + (f" ({left_out} diverged left out)" if left_out else "")
        axes.text(102, place, note, va="center", size=9, color=INK)
    axes.set_yticks(range(len(methods)), [NAMES.get(method, method) for method in methods])
    axes.set(xlim=(-3, 125), xlabel="teachers that help (% of a student's teachers); line: median, box: quartiles")
    axes.set_xticks(range(0, 101, 20))
    axes.grid(axis="y", visible=False)
    axes.invert_yaxis()
    return figure


@styled
def transfer_rates(rows: Sequence[Row]) -> Figure:
    """How much of the complementary knowledge moved, by the classes that hold its top X % (figure 5a).

    The rate of the figure, 100 - X + ..., tends to 100 for small X whatever a method does: the right panel shows the
    share of the very samples that only the teacher got right.
    """
    names = [f"top{share}_transfer_rate" for share in SHARES]
    frame = frame_of(rows, *names, "transfer_rate_strict")
    methods = methods_in(frame)
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, gridspec_kw={"width_ratios": [3, 2]})
    for place, (method, colour) in enumerate(methods.items()):
        mine = frame[frame["method"] == method]
        first, median, third = (mine[names].quantile(q) for q in (0.25, 0.5, 0.75))
        left.plot(range(len(SHARES)), median, color=colour, marker="o", markersize=4, label=NAMES.get(method, method))
        left.fill_between(range(len(SHARES)), first, third, color=colour, alpha=0.1, linewidth=0)
        strict = mine["transfer_rate_strict"]
        right.barh(place, strict.mean(), 0.6, color=colour, xerr=strict.std() if len(strict) > 1 else None, alpha=0.8)
    left.set_xticks(range(len(SHARES)), [f"top {share} %" for share in SHARES])
    left.set_ylabel("transfer rate (%), median and quartiles")
    left.legend(loc="best", fontsize=8)
    right.set_yticks(range(len(methods)), [NAMES.get(method, method) for method in methods])
    right.set_xlabel("same samples (% of positive flips),\nmean and std over pairs")
    right.grid(axis="y", visible=False)
    right.invert_yaxis()
    return figure


@styled
def rate_by_size(rows: Sequence[Row]) -> Figure:
    """Transfer rate over the positive flips that remain, against the student's size, mean over teachers (fig. 5b)."""
    frame = frame_of(rows, "transfer_rate_after", "parameters")
    if frame["parameters"].nunique() < 2:
        raise ConfigError("all students have one size: nothing to plot")
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for method, colour in methods_in(frame).items():
        mine = frame[frame["method"] == method].groupby("parameters")["transfer_rate_after"].mean()
        label = NAMES.get(method, method)
        axes.plot(mine.index / 1e6, mine, color=colour, marker="o", markersize=4, label=label)
    axes.set_xscale("log")
    axes.set(xlabel="parameters of the student (millions)", ylabel="transfer rate (%)")
    axes.legend(loc="best")
    return figure


@styled
def leaderboard(rows: Sequence[Row]) -> Figure:
    """Each student's deltas by method: mean, and the range over its teachers."""
    frame = frame_of(rows, "transfer_delta")
    methods = methods_in(frame)
    students = sorted(frame["student"].unique(), key=natural)
    figure = Figure(figsize=(7.2, 1.3 + (0.16 * len(methods) + 0.25) * len(students)), layout="constrained")
    axes = figure.subplots()
    axes.axvline(0, color=INK, linewidth=0.8)
    step = 0.8 / len(methods)
    for offset, (method, colour) in enumerate(methods.items()):
        mine = frame[frame["method"] == method].groupby("student")["transfer_delta"].agg(["mean", "min", "max"])
        mine = mine.reindex(students)
        places = np.arange(len(students)) - 0.4 + (offset + 0.5) * step
        axes.hlines(places, mine["min"], mine["max"], color=colour, linewidth=1.5, alpha=0.5)
        axes.scatter(mine["mean"], places, s=26, color=colour, label=NAMES.get(method, method), zorder=3)
    axes.set_yticks(range(len(students)), students, size=8.5)
    axes.set_xlabel("transfer delta (points): mean, and range over teachers")
    axes.grid(axis="y", visible=False)
    axes.invert_yaxis()
    figure.legend(loc="outside upper left", ncols=4)
    return figure


@styled
def pair_deltas(rows: Sequence[Row]) -> Figure:
    """Every pair's delta by method, mean and sample standard deviation over seeds; teachers from weak to strong."""
    found = measured([r for r in rows if {"student", "teacher", "method"} <= r.cell.keys()], ["transfer_delta"])
    keys = ["student", "teacher", "method"]
    lines = [{key: row.cell[key] for key in keys} | row.metrics for row in found]
    frame = pd.DataFrame(lines)
    methods = methods_in(frame)
    students = sorted(frame["student"].unique(), key=natural)
    figure = Figure(figsize=(7.6, 0.9 + 2.7 * len(students)), layout="constrained")
    panels = figure.subplots(len(students), 1, squeeze=False)[:, 0]
    for axes, student in zip(panels, students, strict=True):
        mine = frame[frame["student"] == student]
        gaps = mine.groupby("teacher")["accuracy_gap"].mean().sort_values()
        for place, (method, colour) in enumerate(methods.items()):
            over_seeds = mine[mine["method"] == method].groupby("teacher")["transfer_delta"]
            table = over_seeds.agg(["mean", "std"]).reindex(gaps.index)
            places = np.arange(len(gaps)) + 0.7 * ((place + 0.5) / len(methods) - 0.5)
            label = NAMES.get(method, method) if student == students[0] else None
            axes.errorbar(places, table["mean"], table["std"].fillna(0), fmt="o", color=colour, capsize=3, label=label)
        axes.axhline(0, color=INK, linewidth=0.8)
        axes.set_yscale("symlog", linthresh=0.2)
        low, high = mine["transfer_delta"].min(), mine["transfer_delta"].max()
        axes.set_ylim(1.6 * min(low, -0.1), 1.6 * max(high, 0.1))
        axes.set_yticks([tick for tick in TICKS if 1.6 * low <= tick <= 1.6 * high])
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:+g}".replace("-", "−") if value else "0")
        ticks = [f"{teacher}\n({gap:+.1f})".replace("-", "−") for teacher, gap in gaps.items()]
        axes.set_xticks(range(len(gaps)), ticks)
        axes.grid(axis="x", visible=False)
        axes.set_title(f"student {student}", size=9.5)
    figure.supylabel("transfer delta (points, symmetric log scale)", size=10)
    figure.legend(loc="outside upper left", ncols=min(6, len(methods)))
    return figure


@styled
def outlook(rows: Sequence[Row], by: str = "positive_flips_before") -> Figure:
    """Did complementary knowledge, known before training, foretell the delta? Spearman's correlation by method."""
    frame = frame_of(rows, "transfer_delta", by)
    if frame[["student", "teacher"]].drop_duplicates().shape[0] < 3:
        raise ConfigError("fewer than three pairs: no ranking to compare with")
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.axhline(0, color=GREY, linewidth=0.9)
    for method, colour in methods_in(frame).items():
        mine = frame[frame["method"] == method]
        label = NAMES.get(method, method)
        if len(mine) >= 3 and np.ptp(mine[[by, "transfer_delta"]].to_numpy(), axis=0).all():
            label += f": ρ = {spearmanr(mine[by], mine['transfer_delta']).statistic:+.2f}".replace("-", "−")
        axes.scatter(mine[by], mine["transfer_delta"], s=26, color=colour, alpha=0.8, label=label)
    axes.set(xlabel="complementary knowledge before training (% of images)", ylabel="transfer delta (points)")
    axes.legend(loc="best", title="Spearman's ρ over pairs", title_fontsize=9)
    return figure


@styled
def stages(rows: Sequence[Row]) -> Figure:
    """Delta, gain and loss by epoch through sequential stages, a panel for each order; mean over seeds."""
    found = measured([row for row in rows if row.cell.get("combine") == "sequential"], series=["epoch"])
    points = []
    for row in found:
        number = len(row.cell["teachers"].split("+")) if row.cell["stage"] == "final" else int(row.cell["stage"])
        for name in CURVES:
            for epoch, value in zip(row.series["epoch"], row.series[name], strict=True):
                point = {"order": row.cell["order"], "stage": number, "epoch": epoch, "curve": name, "value": value}
                points.append(point | {"student": row.cell["student"]})
    frame = pd.DataFrame(points).dropna()
    length = frame["epoch"].max()
    frame["epoch"] += (frame["stage"] - 1) * length
    panels = list(frame.groupby(["student", "order"]))
    figure = Figure(figsize=(4 * len(panels) + 0.6, 3.4), layout="constrained")
    for axes, ((student, order), part) in zip(
        figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels, strict=True
    ):
        for (name, label), colour in zip(CURVES.items(), SERIES, strict=False):
            curve = part[part["curve"] == name].groupby("epoch")["value"].mean()
            axes.plot(curve.index, curve, color=colour, marker="o", markersize=3, label=label)
        for stage in range(1, int(part["stage"].max())):
            axes.axvline(stage * length, color=GREY, linewidth=0.9, linestyle=(0, (3, 2)))
        axes.axhline(0, color=GREY, linewidth=0.9)
        axes.set_title(f"{student}, {order}", size=9.5)
        axes.set_xlabel("epoch")
    figure.axes[0].set_ylabel("points")
    figure.axes[0].legend(loc="best", fontsize=8)
    return figure


def _cross(axes: Axes) -> None:
    axes.axhline(0, color=GREY, linewidth=0.9)
    axes.axvline(0, color=GREY, linewidth=0.9)
