"""Plots of cloning: of many rows for reports, and of one run's search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from recombine.core.errors import ConfigError
from recombine.core.types import Row
from recombine.pnc.claims import is_default
from recombine.report.columns import natural
from recombine.report.registry import Plot, register_plots
from recombine.report.style import BLUE, GREY, INK, ORANGE, RED, measured, save, styled

if TYPE_CHECKING:
    from recombine.pnc.cloning import LearnedClone
    from recombine.run.run import Run

__all__ = [
    *("data_curve", "keep_curve", "mask_overlap", "plot_search", "position_curve", "save_search_plot"),
    "similarity_matrix",
]

SEARCH_CURVES = {"original": ("old classes", BLUE), "cloned": ("cloned classes", RED), "average": ("average", ORANGE)}
CURVES = {"original": ("old classes", BLUE), "cloned": ("cloned classes", RED), "average": ("mean", INK)}


def _many(row: Row) -> bool:
    """Whether several classes are cloned: curves of single ones are for tables."""
    return " " in str(row.cell["clone"])


def _checked(found: Any) -> Any:
    """What was found; ConfigError if nothing was."""
    if not found:
        raise ConfigError("these rows are not those of this plot: nothing to plot")
    return found


def _name(row: Row) -> str:
    """The row's target and classes, and whether it saw images of the target's own classes."""
    without = "" if row.cell.get("use_target_data", True) else ", no own images"
    labels = str(row.cell["clone"]).split()
    return f"{row.cell['target']}, {' '.join(labels[:6])}{f' ... ({len(labels)})' if labels[6:] else ''}{without}"


def _panels(groups: dict[str, list[Row]]) -> tuple[Figure, list[Axes]]:
    """A figure with a panel for each group, three in a row."""
    columns = min(3, len(groups))
    count = -(-len(groups) // columns)
    figure = Figure(figsize=(1 + 3.6 * columns, 0.5 + 2.9 * count), layout="constrained")
    panels = list(figure.subplots(count, columns, squeeze=False).flat)
    for axes in panels[len(groups) :]:
        axes.set_axis_off()
    for axes, title in zip(panels, groups, strict=False):
        axes.set_title(title, size=9)
    return figure, panels


def _grouped(rows: Sequence[Row]) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(_name(row), []).append(row)
    return dict(sorted(groups.items(), key=lambda item: natural(item[0])))


def _curve(axes: Axes, points: pd.DataFrame, colour: str, label: str, line: str = "-") -> None:
    """Mean and sample standard deviation of `y` by `x`."""
    found = points.groupby("x")["y"].agg(["mean", "std"])
    axes.plot(found.index, found["mean"], color=colour, marker="o", markersize=3, label=label, linestyle=line)
    spread = found["std"].fillna(0)
    axes.fill_between(
        found.index, found["mean"] - spread, found["mean"] + spread, color=colour, alpha=0.15, linewidth=0
    )


@styled
def position_curve(rows: Sequence[Row]) -> Figure:
    """Figure 1: accuracy on images kept for selection against the position R; dashed: the positions taken."""
    found = measured([row for row in rows if row.cell.get("method") == "pnc"], series=["search_average"])
    found = [row for row in found if len(row.series["search_position"]) > 1 and is_default(row)]
    groups = _checked(_grouped(found))
    figure, panels = _panels(groups)
    for axes, group in zip(panels, groups.values(), strict=False):
        for name, (label, colour) in CURVES.items():
            points = [{"x": row.series["search_position"], "y": row.series[f"search_{name}"]} for row in group]
            _curve(axes, pd.concat(map(pd.DataFrame, points)), colour, label)
        for row in group:
            axes.axvline(row.metrics["position"], color=GREY, linewidth=0.9, linestyle=(0, (3, 2)))
        axes.xaxis.set_major_locator(MaxNLocator(nbins="auto", steps=[1, 2, 2.5, 5, 10], integer=True))
        axes.set_xlabel("position R")
    panels[0].set_ylabel("top-1 on kept images (%)")
    panels[0].legend(loc="best", fontsize=8)
    return figure


def _single(rows: Sequence[Row], series: str) -> list[Row]:
    """Clones of one class each with masks on the same layers: those of the pair and position with most classes."""
    clones = [row for row in rows if row.cell.get("method") == "pnc" and row.cell.get("clone") and not _many(row)]
    groups: dict[tuple, list[Row]] = {}
    for row in measured(clones, series=[series, "mask_layers"]):
        place = (row.cell["target"], row.cell["source"], *row.series["mask_layers"])
        groups.setdefault(place, []).append(row)
    return max(groups.values(), key=lambda group: len({row.cell["clone"] for row in group}))


@styled
def similarity_matrix(rows: Sequence[Row]) -> Figure:
    """Figure 2: Sim(module of class i, source) around images of class j, mean over seeds."""
    found = _single(rows, "similarity_by_class")
    names = [str(name) for name in found[-1].series["source_classes"]]
    lines: dict[str, list[list[float]]] = {}
    for row in sorted(found, key=lambda row: natural(str(row.cell["clone"]))):
        label = str(row.cell["clone"])
        name = names[int(label)] if label.isdigit() and int(label) < len(names) else label
        lines.setdefault(name, []).append(row.series["similarity_by_class"])
    values = np.array([np.mean(line, 0) for line in lines.values()])
    return _matrix(values, list(lines), names, "module of", "around images of", "Sim to the source")


def jaccard(one: Sequence[str], other: Sequence[str]) -> list[float]:
    """Fraction of the filters kept by either of two modules that both keep, layer by layer; masks as in rows."""
    pairs = [(int(a, 16), int(b, 16)) for a, b in zip(one, other, strict=True)]
    return [(a & b).bit_count() / (a | b).bit_count() for a, b in pairs]


@styled
def mask_overlap(rows: Sequence[Row]) -> Figure:
    """Figure 3: overlap of the filters kept for two classes, by layer; the curve is the mean over pairs of classes."""
    found = _single(rows, "masks")
    by_seed: dict[int, list[Row]] = {}
    for row in found:
        by_seed.setdefault(row.seed, []).append(row)
    layers = found[-1].series["mask_layers"]
    pairs = [pair for group in by_seed.values() for pair in combinations(group, 2)]
    masks = [(a.series["masks"], b.series["masks"]) for a, b in pairs if a.cell["clone"] != b.cell["clone"]]
    overlap = np.array([jaccard(*both) for both in _checked(masks)])
    figure = Figure(figsize=(2.2 + 0.7 * len(layers), 3.2), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(layers))
    for line in overlap:
        axes.plot(places, line, ".", color=BLUE, alpha=0.35)
    axes.plot(places, overlap.mean(0), color=BLUE, marker="o", label="mean over pairs of classes")
    kept = found[-1].metrics["kept_filters"] / 100
    axes.axhline(kept / (2 - kept), color=RED, linewidth=1.2, linestyle=(0, (1, 1.5)), label="chance")
    axes.set_xticks(places, layers, rotation=40, ha="right")
    axes.set(ylim=(0, 1.02), ylabel="overlap (Jaccard)")
    axes.legend(loc="best", fontsize=8)
    return figure


def _matrix(values: np.ndarray, down: list[str], across: list[str], y: str, x: str, what: str) -> Figure:
    figure = Figure(figsize=(2.4 + 0.55 * len(across), 1.4 + 0.5 * len(down)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(values, cmap="viridis", vmin=min(0.0, values.min()), vmax=1)
    figure.colorbar(image, ax=axes, label=what).outline.set_visible(False)
    axes.grid(False)
    axes.set_xticks(range(len(across)), across, rotation=40, ha="right")
    axes.set_yticks(range(len(down)), down)
    axes.set(xlabel=x, ylabel=y)
    if len(across) <= 12:
        bright = mpl.colors.Normalize(*image.get_clim())
        for (i, j), value in np.ndenumerate(values):
            colour = "white" if bright(value) < 0.6 else INK
            axes.text(j, i, f"{value:.2f}", ha="center", va="center", color=colour, size=8)
    return figure


@styled
def keep_curve(rows: Sequence[Row]) -> Figure:
    """Figure 4: accuracy over the fraction of filters that stays, where the position is searched."""
    clones = [row for row in rows if row.cell.get("method") == "pnc" and row.cell.get("positions") == "all"]
    found = [row for row in measured(clones, ["accuracy_average"]) if _many(row)]
    return _over(found, "keep_ratio", "fraction of filters kept", {"pnc": "-"})


@styled
def data_curve(rows: Sequence[Row]) -> Figure:
    """Figure 5: mean accuracy over the fraction of the training images, cloning and Learning without Forgetting."""
    default = [row for row in rows if row.cell.get("method") in ("pnc", "lwf") and is_default(row)]
    found = [row for row in measured(default, ["accuracy_average"], across=("fraction",)) if _many(row)]
    return _over(found, "fraction", "fraction of the training images", {"pnc": "-", "lwf": "--"})


def _over(rows: Sequence[Row], key: str, label: str, lines: dict[str, str]) -> Figure:
    """Accuracies against a cell key with several values, a line style for each method."""
    groups = _grouped(rows).items()
    groups = _checked({name: group for name, group in groups if len({row.cell[key] for row in group}) > 1})
    figure, panels = _panels(groups)
    for axes, group in zip(panels, groups.values(), strict=False):
        for method, line in lines.items():
            for name, (what, colour) in CURVES.items():
                pairs = [(r.cell[key], r.metrics[f"accuracy_{name}"]) for r in group if r.cell["method"] == method]
                if pairs:
                    _curve(axes, pd.DataFrame(pairs, columns=["x", "y"]), colour, f"{method}: {what}", line)
        axes.set_xlabel(label)
    panels[0].set_ylabel("top-1 (%)")
    panels[0].legend(loc="best", fontsize=8)
    return figure


@styled
def plot_search(curve: Mapping[str, Sequence], labels: Sequence[str], selected: int, probe: float) -> Figure:
    """Accuracies of `curve` by position, and eq. (8) below if it was measured; dashed: the one selected.

    The average has the interval of its gain over the `probe`, whose average is the grey line.
    """
    panels = 2 if "similarity" in curve else 1
    figure = Figure(figsize=(max(4.2, 1.6 + 0.6 * len(labels)), 1.0 + 2.4 * panels), layout="constrained")
    upper, *lower = figure.subplots(panels, squeeze=False, sharex=True)[:, 0]
    for name, (label, colour) in SEARCH_CURVES.items():
        upper.plot(range(len(labels)), curve[name], "o-", color=colour, label=label)
    upper.axhline(probe, color=GREY, linewidth=1.2, label="average of a linear probe")
    gained = [np.array(curve[f"gain_over_probe{end}"]) + probe for end in ("", "_low", "_high")]
    reach = np.abs(np.array(gained[1:]) - gained[0])
    upper.errorbar(range(len(labels)), gained[0], reach, fmt="none", color=ORANGE, capsize=3)
    upper.set_ylabel("accuracy (%)")
    upper.legend(loc="best")
    upper.set_title("Where to insert the clone")
    for axes in lower:
        axes.plot(range(len(labels)), curve["similarity"], "o-", color=GREY)
        axes.set_ylabel("similarity, eq. (8)")
    for axes in (upper, *lower):
        axes.axvline(selected, color=GREY, linestyle="--", linewidth=1, zorder=0)
        axes.set_xticks(range(len(labels)), labels)
    (lower or [upper])[-1].set_xlabel("position, from input to output; images kept for selection")
    return figure


def save_search_plot(run: Run, learned: LearnedClone, name: str) -> None:
    """Draw it into the run's folder, and for its tracker."""
    figure = plot_search(learned.curve, learned.labels, learned.selected, learned.metrics["select_average_probe"])
    path = save(figure, run.dir / "plots" / f"{name}.png")
    caption = "Where to insert the clone: accuracy on images kept for selection; dashed: selected; grey: a linear probe"
    run.tracker.image(name, path, caption)


PLOTS = {
    "position_curve": Plot(
        "Where a part is inserted",
        "Accuracy on images kept for selection at each position, mean over seeds; the band is one sample standard "
        "deviation. Dashed: the positions taken.",
        position_curve,
    ),
    "similarity_matrix": Plot(
        "How local a module is",
        "Similarity of the module of a class (row) and the whole source, around images of each class (column). A "
        "module that holds its class alone is bright on the diagonal and dark beside it.",
        similarity_matrix,
    ),
    "mask_overlap": Plot(
        "Filters that two classes share",
        "Jaccard overlap of the filters kept for two classes, a point for each pair, by layer. Dotted: what two "
        "random masks share.",
        mask_overlap,
    ),
    "keep_curve": Plot(
        "How many filters stay",
        "Accuracy over the fraction of filters kept, mean over seeds; the band is one sample standard deviation.",
        keep_curve,
    ),
    "data_curve": Plot(
        "How many images it takes",
        "Accuracy over the fraction of the training images, cloning (solid) and Learning without Forgetting (dashed).",
        data_curve,
        across=("fraction",),
    ),
}
register_plots("pnc", PLOTS)
