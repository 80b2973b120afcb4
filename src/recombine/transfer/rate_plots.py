"""Plots of transfer rates: how much of the teacher's complementary knowledge the student took over."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial, reduce

import pandas as pd
from matplotlib.figure import Figure

from recombine.core.errors import ConfigError
from recombine.core.types import Row
from recombine.report.style import styled
from recombine.transfer.method_names import frame_of, methods_in, name_of

__all__ = ["SHARES", "rate_by_size", "transfer_rates"]

SHARES = (2, 5, 20, 50, 100)
STRICT = "transfer_rate_strict"


def with_gap(rows: Sequence[Row]) -> list[Row]:
    """Rows of pairs that differ in accuracy: like the paper, plots of rates leave out those that do not."""
    return [row for row in rows if row.metrics.get("accuracy_gap") != 0]


@styled
def transfer_rates(rows: Sequence[Row]) -> Figure:
    """How much of the complementary knowledge moved, by the classes that hold its top X % (figure 5a).

    The rate of the figure, 100 - X + ..., tends to 100 for small X whatever a method does: the right panel shows the
    share of the very samples that only the teacher got right.
    """
    shares = [f"top{share}_transfer_rate" for share in SHARES]
    frame = reduce(partial(pd.merge, how="outer"), [frame_of(with_gap(rows), n) for n in (*shares, STRICT)])
    methods = methods_in(frame)
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, gridspec_kw={"width_ratios": [3, 2]})
    places = range(len(SHARES))
    for place, (method, colour) in enumerate(methods.items()):
        mine = frame[frame["method"] == method]
        first, median, third = (mine[shares].quantile(q) for q in (0.25, 0.5, 0.75))
        left.plot(places, median, color=colour, marker="o", markersize=4, label=name_of(method))
        left.fill_between(places, first, third, color=colour, alpha=0.1, linewidth=0)
        right.barh(place, mine[STRICT].mean(), 0.6, color=colour, xerr=mine[STRICT].std(), alpha=0.8)
    left.set_xticks(places, [f"top {share} %" for share in SHARES])
    left.set_ylabel("transfer rate (%), median and quartiles")
    left.legend(loc="best", fontsize=8)
    right.set_yticks(range(len(methods)), map(name_of, methods))
    right.set_xlabel("same samples (% of positive flips),\nmean and std over pairs")
    right.grid(axis="y", visible=False)
    right.invert_yaxis()
    return figure


@styled
def rate_by_size(rows: Sequence[Row]) -> Figure:
    """Transfer rate over the positive flips that remain, against the student's size, mean over teachers (fig. 5b).

    The paper has a line for each family of students; rows do not say of which family a network is.
    """
    frame = frame_of(with_gap(rows), "transfer_rate_after", "parameters")
    if frame["parameters"].nunique() < 2:
        raise ConfigError("all students have one size: nothing to plot")
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for method, colour in methods_in(frame).items():
        mine = frame[frame["method"] == method].groupby("parameters")["transfer_rate_after"].mean()
        axes.plot(mine.index / 1e6, mine, color=colour, marker="o", markersize=4, label=name_of(method))
    axes.set_xscale("log")
    axes.set(xlabel="parameters of the student (millions)", ylabel="transfer rate (%)")
    axes.legend(loc="best")
    return figure
