"""Plots of transfer deltas: what helps, by how much, and for whom. Every plot function returns a matplotlib Figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from recombine.core.errors import ConfigError
from recombine.core.types import Row
from recombine.report.columns import natural
from recombine.report.registry import Plot, register_plots
from recombine.report.style import GREY, INK, SERIES, measured, styled
from recombine.transfer import rate_plots
from recombine.transfer.plot_frames import assign_colors, label_method, mean_frame, seed_frame

__all__ = ["gap_curve", "gap_table", "leaderboard", "outlook", "pair_deltas", "stages", "success_rates"]

BINS = 8
"""Of the accuracy gap, equal in width, as in the paper."""
DIVERGED = -10
"""Students with a mean delta at or below this are left out of success rates, as in the paper."""
CURVES = {"transfer_delta": "delta", "knowledge_gain": "gain", "knowledge_loss": "loss"}
PANEL = ["student", "teachers", "method", "order"]
TICKS = (-20, -10, -5, -2, -1, -0.5, -0.2, -0.1, 0, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20)


def gap_table(frame: pd.DataFrame, bins: int = BINS) -> pd.DataFrame:
    """By method and bin of the accuracy gap: mean, quartiles, and the mean of the best quarter of deltas (fig. 4b)."""
    low, high = frame["accuracy_gap"].min(), frame["accuracy_gap"].max()
    edges = np.linspace(low, max(high, low + 1e-9), bins + 1)
    place = np.clip(np.digitize(frame["accuracy_gap"], edges) - 1, 0, bins - 1)
    table = []
    for (method, b), part in frame.assign(bin=place).groupby(["method", "bin"]):
        deltas = part["transfer_delta"]
        first, third = deltas.quantile([0.25, 0.75])
        best = deltas[deltas >= third].mean()
        centre = (edges[int(b)] + edges[int(b) + 1]) / 2
        statistics = {"mean": deltas.mean(), "first": first, "third": third, "best": best, "n": len(deltas)}
        table.append({"method": method, "gap": centre, **statistics})
    return pd.DataFrame(table)


@styled
def gap_curve(rows: Sequence[Row]) -> Figure:
    """Transfer delta against the accuracy gap: every pair, and by bin the mean, quartiles and best quarter's mean."""
    frame = mean_frame(rows, "transfer_delta", "accuracy_gap")
    table = gap_table(frame, BINS if len(frame.groupby(["student", "teacher"])) >= 4 * BINS else 4)
    methods = assign_colors(frame)
    figure = Figure(figsize=(2.5 * len(methods) + 1, 3.6), layout="constrained")
    panels = figure.subplots(1, len(methods), sharex=True, sharey=True, squeeze=False)[0]
    for axes, (method, colour) in zip(panels, methods.items(), strict=True):
        points, curve = frame[frame["method"] == method], table[table["method"] == method]
        _cross(axes)
        axes.scatter(points["accuracy_gap"], points["transfer_delta"], s=16, color=colour, alpha=0.45, linewidth=0)
        axes.fill_between(curve["gap"], curve["first"], curve["third"], color=colour, alpha=0.15, linewidth=0)
        axes.plot(curve["gap"], curve["mean"], color=colour, marker="o", markersize=4, label="mean, quartiles")
        axes.plot(curve["gap"], curve["best"], color=colour, linestyle=(0, (3, 2)), label="best quarter")
        axes.set_title(label_method(method), size=9.5)
        axes.set_xlabel("gap (points)")
    panels[0].set_ylabel("transfer delta (points)")
    panels[0].legend(loc="best", fontsize=8)
    return figure


@styled
def success_rates(rows: Sequence[Row]) -> Figure:
    """Percentage of teachers that help, over students; the paper reports the median (figure 4a)."""
    frame = mean_frame(rows, "success", "transfer_delta")
    by_student = frame.groupby(["method", "student"], as_index=False)[["success", "transfer_delta"]].mean()
    methods = assign_colors(frame)
    figure = Figure(figsize=(6.8, 1.3 + 0.5 * len(methods)), layout="constrained")
    axes = figure.subplots()
    for place, (method, colour) in enumerate(methods.items()):
        _students(axes, by_student[by_student["method"] == method], place, colour)
    axes.set_yticks(range(len(methods)), map(label_method, methods))
    axes.set(xlim=(-3, 150), xlabel="teachers that help (% of a student's teachers); line: median, box: quartiles")
    axes.set_xticks(range(0, 101, 20))
    axes.grid(axis="y", visible=False)
    axes.invert_yaxis()
    return figure


def _students(axes: Axes, students: pd.DataFrame, place: int, colour: str) -> None:
    """One method: its students, those that diverged hollow; box and line without them, both medians as text."""
    diverged = students["transfer_delta"] <= DIVERGED
    hollow, others = students[diverged]["success"], students[~diverged]["success"]
    first, median, third = others.quantile([0.25, 0.5, 0.75])
    axes.barh(place, third - first, 0.5, first, color=colour, alpha=0.25)
    axes.plot([median, median], [place - 0.25, place + 0.25], color=colour, linewidth=3)
    axes.scatter(others, np.full(len(others), place), s=18, color=colour, zorder=3, alpha=0.7)
    axes.scatter(hollow, np.full(len(hollow), place), s=18, facecolor="none", edgecolor=colour, zorder=3)
    note = f"{students['success'].median():.1f} %"
    if len(hollow):
        without = f"{median:.1f} % without" if len(others) else "all"
        note += f"\n{without} {len(hollow)} diverged"
    axes.text(104, place, note, va="center", size=9, color=INK)


@styled
def leaderboard(rows: Sequence[Row]) -> Figure:
    """Each student's deltas by method: mean, and the range over its teachers."""
    frame = mean_frame(rows, "transfer_delta")
    methods = assign_colors(frame)
    students = sorted(frame["student"].unique(), key=natural)
    figure = Figure(figsize=(7.2, 1.3 + (0.16 * len(methods) + 0.25) * len(students)), layout="constrained")
    axes = figure.subplots()
    axes.axvline(0, color=INK, linewidth=0.8)
    step = 0.8 / len(methods)
    for offset, (method, colour) in enumerate(methods.items()):
        deltas = frame[frame["method"] == method].groupby("student")["transfer_delta"].agg(["mean", "min", "max"])
        deltas = deltas.reindex(students)
        places = np.arange(len(students)) - 0.4 + (offset + 0.5) * step
        axes.hlines(places, deltas["min"], deltas["max"], color=colour, linewidth=1.5, alpha=0.5)
        axes.scatter(deltas["mean"], places, s=26, color=colour, label=label_method(method), zorder=3)
    axes.set_yticks(range(len(students)), students, size=8.5)
    axes.set_xlabel("transfer delta (points): mean, and range over teachers")
    axes.grid(axis="y", visible=False)
    axes.invert_yaxis()
    figure.legend(loc="outside upper left", ncols=4)
    return figure


@styled
def pair_deltas(rows: Sequence[Row]) -> Figure:
    """Every pair's delta by method, mean and sample standard deviation over seeds; teachers from weak to strong."""
    frame = seed_frame(rows, "transfer_delta", "accuracy_gap")
    methods = assign_colors(frame)
    students = sorted(frame["student"].unique(), key=natural)
    most = frame.groupby("student")["teacher"].nunique().max()
    size = (max(7.6, 1 + 1.7 * most), 0.9 + 2.7 * len(students))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(students), 1, squeeze=False)[:, 0]
    for axes, student in zip(panels, students, strict=True):
        _teachers(axes, frame[frame["student"] == student], methods)
        axes.set_title(f"student {student}", size=9.5)
    figure.supylabel("transfer delta (points, symmetric log scale)", size=10)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=min(5, len(methods)))
    return figure


def _teachers(axes: Axes, frame: pd.DataFrame, methods: Mapping[str, str]) -> None:
    """One student: its deltas by teacher, the methods side by side."""
    gaps = frame.groupby("teacher")["accuracy_gap"].mean().sort_values()
    for place, (method, colour) in enumerate(methods.items()):
        over_seeds = frame[frame["method"] == method].groupby("teacher")["transfer_delta"]
        table = over_seeds.agg(["mean", "std"]).reindex(gaps.index)
        places = np.arange(len(gaps)) + 0.7 * ((place + 0.5) / len(methods) - 0.5)
        spread = table["std"].fillna(0)
        axes.errorbar(places, table["mean"], spread, fmt="o", color=colour, capsize=3, label=label_method(method))
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.set_yscale("symlog", linthresh=0.2)
    low, high = frame["transfer_delta"].min(), frame["transfer_delta"].max()
    axes.set_ylim(1.6 * min(low, -0.1), 1.6 * max(high, 0.1))
    axes.set_yticks([tick for tick in TICKS if 1.6 * low <= tick <= 1.6 * high])
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:+g}".replace("-", "−") if value else "0")
    signed = {teacher: f"{round(gap, 1) + 0.0:+.1f}".replace("-", "−") for teacher, gap in gaps.items()}
    axes.set_xticks(range(len(gaps)), [f"{teacher}\n({gap})" for teacher, gap in signed.items()])
    axes.grid(axis="x", visible=False)


@styled
def outlook(rows: Sequence[Row], by: str = "positive_flips_before") -> Figure:
    """Does complementary knowledge before training predict the delta? Spearman's correlation by method."""
    frame = mean_frame(rows, "transfer_delta", by)
    if frame[["student", "teacher"]].drop_duplicates().shape[0] < 3:
        raise ConfigError("fewer than three pairs: no ranking to compare with")
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.axhline(0, color=GREY, linewidth=0.9)
    for method, colour in assign_colors(frame).items():
        pairs = frame[frame["method"] == method]
        label = label_method(method)
        if len(pairs) >= 3 and np.ptp(pairs[[by, "transfer_delta"]].to_numpy(), axis=0).all():
            label += f": ρ = {spearmanr(pairs[by], pairs['transfer_delta']).statistic:+.2f}".replace("-", "−")
        axes.scatter(pairs[by], pairs["transfer_delta"], s=26, color=colour, alpha=0.8, label=label)
    axes.set(xlabel="complementary knowledge before training (% of images)", ylabel="transfer delta (points)")
    axes.legend(loc="best", title="Spearman's ρ over pairs", title_fontsize=9)
    return figure


@styled
def stages(rows: Sequence[Row]) -> Figure:
    """Delta, gain and loss by epoch through sequential stages, mean over seeds; a panel for each order and method."""
    frame = _curve_points(measured([row for row in rows if row.cell.get("combine") == "sequential"], series=["epoch"]))
    length = frame["epoch"].max()
    frame["epoch"] += (frame["stage"] - 1) * length
    panels = list(frame.groupby(PANEL))
    titled = [key for key in PANEL if key in ("student", "order") or frame[key].nunique() > 1]
    figure = Figure(figsize=(4 * len(panels) + 0.6, 3.4), layout="constrained")
    for axes, (names, part) in zip(figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels, strict=True):
        for (name, label), colour in zip(CURVES.items(), SERIES, strict=False):
            curve = part[part["curve"] == name].groupby("epoch")["value"].mean()
            axes.plot(curve.index, curve, color=colour, marker="o", markersize=3, label=label)
        for stage in range(1, int(part["stage"].max())):
            axes.axvline(stage * length, color=GREY, linewidth=0.9, linestyle=(0, (3, 2)))
        axes.axhline(0, color=GREY, linewidth=0.9)
        axes.set_title(", ".join(name for key, name in zip(PANEL, names, strict=True) if key in titled), size=9.5)
        axes.set_xlabel("epoch")
    figure.axes[0].set_ylabel("points")
    figure.axes[0].legend(loc="best", fontsize=8)
    return figure


def _curve_points(rows: Sequence[Row]) -> pd.DataFrame:
    """One row per point of a curve, with its panel and the number of its stage."""
    points = []
    for row in rows:
        panel = {key: row.cell[key] for key in PANEL} | {"method": label_method(row.cell["method"])}
        number = len(row.cell["teachers"].split("+")) if row.cell["stage"] == "final" else int(row.cell["stage"])
        for name in CURVES:
            for epoch, value in zip(row.series["epoch"], row.series[name], strict=True):
                points.append(panel | {"stage": number, "epoch": epoch, "curve": name, "value": value})
    return pd.DataFrame(points).dropna()


def _cross(axes: Axes) -> None:
    axes.axhline(0, color=GREY, linewidth=0.9)
    axes.axvline(0, color=GREY, linewidth=0.9)


PLOTS = {
    "gap_curve": Plot(
        "Transfer delta and accuracy gap",
        "Each point is a teacher and student, mean over seeds. By bin of the gap: mean with quartiles, and the "
        "mean of the best quarter, which is what the paper shows.",
        gap_curve,
    ),
    "success_rates": Plot(
        "Success rates",
        "A point is a student: the percentage of its teachers that helped. Hollow: students that diverged, left out of "
        "box and line; the first number is the median over all students.",
        success_rates,
    ),
    "leaderboard": Plot(
        "Transfer to each student", "Mean over teachers, and the range from worst to best.", leaderboard
    ),
    "transfer_rates": Plot(
        "What was transferred",
        "Left: of the images that only the teacher got right, in percent. Right, as in the paper: by the classes that "
        "hold the top X % of the knowledge; it tends to 100 by its definition. Without pairs of equal accuracy.",
        rate_plots.transfer_rates,
    ),
    "rate_by_size": Plot(
        "Transfer rate and size of the student", "Mean over teachers of another accuracy.", rate_plots.rate_by_size
    ),
    "pair_deltas": Plot(
        "Transfer to each student from each teacher",
        "Mean over seeds; the bar is one sample standard deviation. Below each teacher: its accuracy minus the "
        "student's, in points.",
        pair_deltas,
    ),
    "outlook": Plot(
        "Which teacher should I use?",
        "Complementary knowledge is known before any training, the delta after it.",
        outlook,
    ),
}
MULTI_TEACHER_PLOTS = {
    "stages": Plot(
        "Teachers one after the other",
        "Delta, gain and loss relative to the original student by epoch; dashed: the next teacher takes over.",
        stages,
    ),
}
register_plots("transfer", PLOTS)
register_plots("multi_teacher", MULTI_TEACHER_PLOTS)
