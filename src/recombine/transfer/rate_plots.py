"""Plots of transfer rates: how much of the teacher's complementary knowledge the student took over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial, reduce

import pandas as pd
from matplotlib.figure import Figure

from recombine.core.errors import ConfigError
from recombine.core.types import Row
from recombine.report.style import styled
from recombine.transfer.metrics import TOP_PERCENTAGES
from recombine.transfer.plot_frames import assign_colors, label_method, mean_frame

__all__ = ["published_rates", "rate_by_size", "transfer_rates"]

STRICT = "transfer_rate_strict"
PUBLISHED = [f"published_rate_top{top}" for top in TOP_PERCENTAGES]


def _with_gap(rows: Sequence[Row]) -> list[Row]:
    """Rows of pairs that differ in accuracy: as in the paper, plots of rates leave out the others."""
    return [row for row in rows if row.metrics.get("accuracy_gap") != 0]


@styled
def transfer_rates(rows: Sequence[Row]) -> Figure:
    """How much of the complementary knowledge moved: of the same samples, and as the paper counts (figure 5a).

    The left panel shows how many of the samples that only the teacher got right the student gets right, percent. The
    rate of the figure, by the classes that hold the top X % of the knowledge, tends to 100 for small X whatever a
    method does, also for a student that did not change.
    """
    rows = [replace(row, metrics={**row.metrics, **published_rates(row.metrics)}) for row in _with_gap(rows)]
    frame = reduce(partial(pd.merge, how="outer"), [mean_frame(rows, name) for name in (*PUBLISHED, STRICT)])
    methods = assign_colors(frame)
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, gridspec_kw={"width_ratios": [2, 3]})
    places = range(len(TOP_PERCENTAGES))
    for place, (method, colour) in enumerate(methods.items()):
        pairs = frame[frame["method"] == method]
        left.barh(place, pairs[STRICT].mean(), 0.6, color=colour, xerr=pairs[STRICT].std(), alpha=0.8)
        first, median, third = (pairs[PUBLISHED].quantile(q) for q in (0.25, 0.5, 0.75))
        right.plot(places, median, color=colour, marker="o", markersize=4, label=label_method(method))
        right.fill_between(places, first, third, color=colour, alpha=0.1, linewidth=0)
    left.set_yticks(range(len(methods)), map(label_method, methods))
    left.set_xlabel("same samples (% of positive flips),\nmean and std over pairs")
    left.grid(axis="y", visible=False)
    left.invert_yaxis()
    right.set_xticks(places, [f"top {top} %" for top in TOP_PERCENTAGES])
    right.set_ylabel("as the paper counts (%), median and quartiles")
    right.legend(loc="best", fontsize=8)
    return figure


def published_rates(metrics: Mapping[str, float]) -> dict[str, float]:
    """TR_p = 100 - p + improve_p gain / remaining positive flips of figure 5a, percent; nothing where none remain."""
    remaining = metrics.get("positive_flips_after")
    if not remaining or "knowledge_gain" not in metrics:
        return {}
    gain = metrics["knowledge_gain"] / remaining
    tops = zip(PUBLISHED, TOP_PERCENTAGES, strict=True)
    return {name: 100 - top + metrics.get(f"top{top}_improve", 0.0) * gain for name, top in tops}


@styled
def rate_by_size(rows: Sequence[Row]) -> Figure:
    """Transfer rate over the positive flips that remain, against the student's size, mean over teachers (fig. 5b).

    The paper has a curve for each family of students; rows do not tell the family of a network.
    """
    frame = mean_frame(_with_gap(rows), "transfer_rate_after", "parameters")
    if frame["parameters"].nunique() < 2:
        raise ConfigError("all students have one size: nothing to plot")
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for method, colour in assign_colors(frame).items():
        rates = frame[frame["method"] == method].groupby("parameters")["transfer_rate_after"].mean()
        axes.plot(rates.index / 1e6, rates, color=colour, marker="o", markersize=4, label=label_method(method))
    axes.set_xscale("log")
    axes.set(xlabel="parameters of the student (millions)", ylabel="transfer rate (%)")
    axes.legend(loc="best")
    return figure
