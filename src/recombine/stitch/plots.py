"""Plots of stitching: fronts of accuracy and cost, what the search switches on, and how good single stitches are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

from recombine.core.errors import ConfigError
from recombine.core.types import Row
from recombine.report.registry import Plot, register_plots
from recombine.report.style import BLUE, GREY, INK, ORANGE, RED, SERIES, measured, styled
from recombine.stitch.comparison import score_of
from recombine.stitch.pareto import front

__all__ = ["fronts", "single_stitches", "stitch_errors", "switches"]

NAMES = {
    "ga_familial": "GA",
    "gomea": "GOMEA",
    "lk_gomea": "LK-GOMEA",
    "nsga2": "NSGA-II",
    "random": "random",
    "single_stitch_sweep": "single stitches",
}
"""Names of the searches, in the order in which they are shown."""
SCORES = {"accuracy": "accuracy", "miou": "mIoU"}
TOGETHER = ("a", "b", "search", "population")
"""Parts of the cell that do not separate panels of the same parents."""
MARGIN_BELOW = 0.6
"""How far below the worst parent the accuracy axis starts, as a fraction of the range above it."""
NAMED_PAIRS = 20
"""Largest number of pairs that are labelled with their nodes' names."""


def facets(rows: Sequence[Row], *alike: str) -> dict[str, list[Row]]:
    """Rows grouped by their parents and the parts of the cell in which rows differ, by the title of each group.

    `alike`: parts that what is plotted does not depend on, beside `TOGETHER`.
    """
    keys = dict.fromkeys(key for row in rows for key in row.cell if key not in (*TOGETHER, *alike))
    differing = [key for key in keys if len({str(row.cell.get(key)) for row in rows}) > 1]
    found: dict[str, list[Row]] = {}
    for row in rows:
        words = [f"{row.cell['a']} × {row.cell['b']}", *(f"{key} {row.cell.get(key)}" for key in differing)]
        found.setdefault(", ".join(words), []).append(row)
    return found


def searches_in(rows: Sequence[Row]) -> dict[str, str]:
    """The searches of the rows in the order of their names, each with its colour."""
    order = [*NAMES, *sorted({str(row.cell["search"]) for row in rows} - NAMES.keys())]
    found = {str(row.cell["search"]) for row in rows}
    colours = dict(zip(order, (colour for colour in SERIES * len(order) if colour != ORANGE), strict=False))
    return {search: colours[search] for search in order if search in found}


@styled
def fronts(rows: Sequence[Row]) -> Figure:
    """The front of every run in accuracy and multiply-adds, on search and test images."""
    found = measured(rows, series=["front_cost", "reference_cost"])
    groups, colours = facets(found), searches_in(found)
    figure = Figure(figsize=(9.2, 0.6 + 3.5 * len(groups)), layout="constrained")
    panels = figure.subplots(len(groups), 2, squeeze=False, sharey="row")
    for pair, (title, group) in zip(panels, groups.items(), strict=True):
        for axes, purpose in zip(pair, ("search", "test"), strict=True):
            _fronts(axes, group, purpose, colours)
            axes.set_title(f"{purpose} images" if axes is pair[1] else f"{title}\n{purpose} images", size=9.5)
        pair[0].set_ylabel("multiply-adds of an image")
    scores = {score_of(row.series, "front_") for row in found}
    for axes in panels[-1]:
        axes.set_xlabel(" or ".join(sorted(SCORES[score] for score in scores)) + " (%)")
    handles = [panels[0, 0].plot([], [], color=colour, marker="o", markersize=4)[0] for colour in colours.values()]
    figure.legend(handles, [NAMES.get(s, s) for s in colours], loc="outside upper left", ncols=len(handles))
    return figure


def _fronts(axes: Axes, rows: Sequence[Row], purpose: str, colours: Mapping[str, str]) -> None:
    """One pair of parents on one set of images: fronts as steps, the parents, the region that dominates one."""
    references = _points(rows[0], "reference", purpose)
    sides = [_points(row, "front", purpose) for row in rows]
    highest = max(points[:, 0].max() for points in (references, *sides))
    lowest = references[:, 0].min()
    left = lowest - MARGIN_BELOW * max(highest - lowest, 0.5)
    right = highest + 0.06 * (highest - left)
    steps = references[np.argsort(references[:, 0])]
    reach = np.maximum.accumulate(steps[:, 1])
    edge = [*steps[:, 0], right]
    axes.fill_between(edge, [*reach, reach[-1]], step="post", color=ORANGE, alpha=0.13, linewidth=0, zorder=0)
    order = list(colours)
    for row, points in sorted(zip(rows, sides, strict=True), key=lambda side: order.index(side[0].cell["search"])):
        colour = colours[row.cell["search"]]
        above = len(order) - 1 - order.index(row.cell["search"])  # wider below, so that equal fronts are seen
        best = points[front(points * [-1, 1])][::-1]
        steps_x, steps_y = [min(left, best[0, 0]), *best[:, 0]], [best[0, 1], *best[:, 1]]
        axes.plot(steps_x, steps_y, color=colour, drawstyle="steps-pre", linewidth=1 + 0.5 * above)
        axes.scatter(points[:, 0], points[:, 1], s=10 + 6 * above, color=colour, linewidth=0, zorder=2.5)
    axes.scatter(references[:, 0], references[:, 1], s=90, marker="x", color=ORANGE, linewidth=3, zorder=4)
    for name, (x, y) in zip(("A", "B", "A + B"), references, strict=True):
        axes.annotate(name, (x, y), (-7, 5), textcoords="offset points", ha="right", size=9, color=INK)
    shown = [points[points[:, 0] >= left, 1].max(initial=0) for points in (references, *sides)]
    axes.set(xlim=(left, right), ylim=(0, 1.1 * max(shown)))
    axes.yaxis.set_major_formatter(EngFormatter(sep=""))


def _points(row: Row, columns: str, purpose: str) -> np.ndarray:
    """Score in percent and multiply-adds of the networks of a run, float64 [n, 2]."""
    score = score_of(row.series, f"{columns}_")
    return np.stack([row.series[f"{columns}_{purpose}_{score}"], row.series[f"{columns}_cost"]], 1).astype(float)


@styled
def switches(rows: Sequence[Row]) -> Figure:
    """Stitches that are on, and those that are active, in the archive during the search."""
    found = [row for row in measured(rows, series=["requests", "stitches"]) if len(row.series["requests"]) > 1]
    if not found:
        raise ConfigError("no search of these rows has more than one batch of requests: nothing to plot")
    groups, colours = facets(found), searches_in(found)
    figure = Figure(figsize=(max(5.4, 0.8 + 4.2 * len(groups)), 3.7), layout="constrained")
    panels = figure.subplots(1, len(groups), squeeze=False)[0]
    for axes, (title, group) in zip(panels, groups.items(), strict=True):
        for search, colour in colours.items():
            runs = [row for row in group if row.cell["search"] == search]
            for name, dashes in (("stitches", "-"), ("active_stitches", (0, (3, 1.5)))) if runs else ():
                axes.plot(*mean_curve(runs, name), color=colour, linestyle=dashes, linewidth=1.7)
        axes.set_title(title, size=9.5)
        axes.set(xlabel="requests", ylim=(0, None))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    panels[0].set_ylabel("stitches (median of the archive)")
    lines = [panels[0].plot([], [], color=colour)[0] for colour in colours.values()]
    lines += [panels[0].plot([], [], color=INK, linestyle=dashes)[0] for dashes in ("-", (0, (3, 1.5)))]
    names = [*(NAMES.get(search, search) for search in colours), "on", "active"]
    # five fit beside each other above one panel
    figure.legend(lines, names, loc="outside upper left", ncols=min(len(names), 5 * len(groups)), columnspacing=1.2)
    return figure


def mean_curve(rows: Sequence[Row], name: str) -> tuple[np.ndarray, np.ndarray]:
    """All numbers of requests, and a series interpolated there, mean over the runs that lasted so long."""
    grid = np.unique(np.concatenate([row.series["requests"] for row in rows]))
    curves = [np.interp(grid, row.series["requests"], row.series[name], np.nan, np.nan) for row in rows]
    return grid, np.nanmean(curves, axis=0)


@styled
def single_stitches(rows: Sequence[Row]) -> Figure:
    """Accuracy of all networks with a single stitch by the position of its pair, and of the networks that receive."""
    score = "miou" if all("single_stitch_miou" in row.series for row in rows) else "accuracy"
    found = measured(rows, series=[f"single_stitch_{score}", f"reference_search_{score}"])
    groups = facets(found, "budget")
    figure = Figure(figsize=(9.2, 0.8 + 3.2 * len(groups)), layout="constrained")
    panels = figure.subplots(len(groups), 2, squeeze=False, sharey="row")
    for pair, (title, (row, *_)) in zip(panels, groups.items(), strict=True):
        shared_a, shared_b, into_b, into_a = np.reshape(row.series[f"single_stitch_{score}"], (4, -1))
        a, b, both = row.series[f"reference_search_{score}"]
        _families(pair[0], {"A": (a, BLUE), "B": (b, RED)}, {"A takes B's features": into_a, "B takes A's": into_b})
        _families(pair[1], {"A + B": (both, INK)}, {"A takes B's features": shared_b, "B takes A's": shared_a})
        for axes, what in zip(pair, ("one network", "ensembles"), strict=True):
            axes.set_title(what if axes is pair[1] else f"{title}\n{what}", size=9.5)
            _places(axes, row)
        pair[0].set_ylabel(f"{SCORES[score]} on search images (%)")
    return figure


def _families(axes: Axes, whole: Mapping[str, tuple[float, str]], stitched: Mapping[str, Sequence[float]]) -> None:
    """Networks with one stitch by the position of its pair, and those without any as labelled lines."""
    best = max(accuracy for accuracy, _ in whole.values())
    for name, (accuracy, colour) in whole.items():
        axes.axhline(accuracy, color=colour, linewidth=1, linestyle=(0, (4, 2)))
        place: dict[str, Any] = {"va": "bottom" if accuracy == best else "top", "color": colour}
        axes.annotate(name, (1, accuracy), (3, 0), axes.get_yaxis_transform(), "offset points", **place)
    for (name, values), colour, marker in zip(stitched.items(), (BLUE, RED), "os", strict=True):
        axes.plot(values, color=colour, marker=marker, markersize=4, linewidth=0.7, label=name)
    axes.legend(loc="best", fontsize=8)


@styled
def stitch_errors(rows: Sequence[Row]) -> Figure:
    """Relative squared error of every stitch on the search images, by the position of its pair."""
    found = measured(rows, series=["stitch_errors", "pair_nodes"])
    groups = facets(found, "performance", "budget", "bn_images", "ensemble")
    figure = Figure(figsize=(max(6.4, 0.8 + 4.6 * len(groups)), 3.9), layout="constrained")
    panels = figure.subplots(1, len(groups), squeeze=False, sharey=True)[0]
    for axes, (title, (row, *_)) in zip(panels, groups.items(), strict=True):
        errors = np.maximum(row.series["stitch_errors"], 1e-6)
        axes.axhline(1, color=GREY, linewidth=0.9, linestyle=(0, (4, 2)))
        for side, colour, marker in (("into A", BLUE, "o"), ("into B", RED, "s")):
            axes.plot(errors["AB".index(side[-1]) :: 2], color=colour, marker=marker, markersize=4, label=side)
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_title(title, size=9.5)
        _places(axes, row)
    panels[0].set_ylabel("squared error / variance")
    panels[0].legend(loc="best", fontsize=8)
    return figure


def _places(axes: Axes, row: Row) -> None:
    """The pairs along the x axis, with the names of their nodes where there are few."""
    names = row.series["pair_nodes"]
    if len(names) <= NAMED_PAIRS:
        axes.set_xticks(range(len(names)), names, rotation=60, ha="right", rotation_mode="anchor", size=6.5)
        axes.set_xlabel("pair of nodes (A | B), from input to output")
    else:
        axes.set_xlabel("pair of nodes, from input to output")


PLOTS = {
    "fronts": Plot(
        "Accuracy and cost of offspring",
        "Each line is the front of one run, on search images and on test images. Crosses: the "
        "parents A and B and their ensemble. Shaded: at least as accurate as one of them and no more expensive. "
        "Networks far below both parents are not shown.",
        fronts,
    ),
    "switches": Plot(
        "Stitches in use during the search",
        "Median over the archive, mean over seeds. Solid: all stitches that are switched on; dashed: those that "
        "are active.",
        switches,
    ),
    "single_stitches": Plot(
        "What a single stitch costs",
        "Accuracy of all networks with one stitch by the position of its pair. Lines: the networks that receive the "
        "features; the distance to them is the stitching penalty.",
        single_stitches,
    ),
    "stitch_errors": Plot(
        "Errors of the stitches",
        "Squared error over the variance of the features that a stitch reproduces, by the position of its pair. "
        "1 is no better than the mean of each channel.",
        stitch_errors,
    ),
}
register_plots("stitch", PLOTS)
