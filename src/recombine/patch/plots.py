"""Plots: what a task costs in parameters, what interpolating weights costs the base, and learned skip weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from numpy.typing import ArrayLike

from recombine.core.types import Row
from recombine.report.registry import Plot, register_plots
from recombine.report.style import GREY, INK, SERIES, measured, styled

__all__ = ["interpolation", "parameters", "plot_skip_weights"]

MARKERS = "osD^vPX*"


def label_of(row: Row) -> str:
    """A method as the plots call it; delta-networks with their number of modules."""
    modules = row.cell.get("modules", "none")
    return str(row.cell["method"]) if modules == "none" else f"{row.cell['method']} ({modules})"


def of_one_task(rows: Sequence[Row]) -> list[Row]:
    """Rows of a frozen base with a patch for one task; not those of several tasks, or of a base without training."""
    return [row for row in rows if row.cell.get("task") and row.cell.get("protocol") == "single"]


def longest(rows: Sequence[Row]) -> list[Row]:
    """Of the rows of a model and a task those of the longest training, and none that chose by held-out images."""
    final = [row for row in rows if "accuracy_val" not in row.metrics]
    steps: dict[tuple, float] = {}
    for row in final:
        key = row.cell["model"], row.cell["task"]
        steps[key] = max(steps.get(key, 0.0), row.metrics.get("steps", 0.0))
    return [row for row in final if row.metrics.get("steps", 0.0) == steps[row.cell["model"], row.cell["task"]]]


@styled
def parameters(rows: Sequence[Row]) -> Figure:
    """Accuracy on each task against what was trained for it (classifier left out), mean and std over seeds.

    Where a model and a task were trained at several budgets, the longest. Delta-networks with a part left out
    (delta_...) are for the table of the ablation.
    """
    whole = [row for row in longest(of_one_task(rows)) if not str(row.cell.get("method")).startswith("delta_")]
    found = measured(whole, ["accuracy_patched", "trainable_parameters"])
    lines = [{**row.cell, **row.metrics, "label": label_of(row)} for row in found]
    frame = pd.DataFrame(lines)
    turns = [(k % len(SERIES), (k + k // len(SERIES)) % len(MARKERS)) for k in range(len(SERIES) * len(MARKERS))]
    labels = {label: (SERIES[a], MARKERS[b]) for label, (a, b) in zip(_cheapest(frame), turns, strict=False)}
    models, tasks = list(dict.fromkeys(frame["model"])), list(dict.fromkeys(frame["task"]))
    largest = max(1000, frame["trainable_parameters"].max())
    size = (1 + 3.1 * len(tasks), 1 + 2.7 * len(models))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(models), len(tasks), squeeze=False)
    named: dict[str, Any] = {}
    for line, model in zip(panels, models, strict=True):
        for axes, task in zip(line, tasks, strict=True):
            cell = frame[(frame["model"] == model) & (frame["task"] == task)]
            for label, points in cell.groupby("label", sort=False):
                colour, marker = labels[label]
                values = points["accuracy_patched"]
                x, spread = points["trainable_parameters"].mean(), values.std() if len(values) > 1 else 0
                named[label] = axes.errorbar(x, values.mean(), spread, fmt=marker, color=colour, capsize=3)
            axes.set_xscale("symlog", linthresh=1000, linscale=0.5)
            axes.set_xlim(-300, 3 * largest)
            axes.set_xticks([0, *(10**power for power in range(3, 10) if 10**power < 3 * largest)])
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
            axes.set_title(f"{model}: {task}", size=9.5)
            axes.set_xlabel("trained parameters")
        line[0].set_ylabel("top-1 (%)")
    figure.legend([named[label] for label in labels], list(labels), loc="outside upper left", ncols=5)
    return figure


@styled
def interpolation(rows: Sequence[Row]) -> Figure:
    """PAINT: accuracy of base and task along the line from the base's weights to the tuned ones, mean over seeds."""
    found = measured(of_one_task(rows), series=["alpha", "chosen"])
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in found:
        groups.setdefault((row.cell["model"], row.cell["task"]), []).append(row)
    models, tasks = (list(dict.fromkeys(key[k] for key in groups)) for k in (0, 1))
    size = (1 + 3.1 * len(tasks), 0.3 + 3 * len(models))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(models), len(tasks), squeeze=False, sharey=True)
    places = {(model, task): panels[i, k] for i, model in enumerate(models) for k, task in enumerate(tasks)}
    for key in places.keys() - groups.keys():
        places[key].set_axis_off()
    for (model, task), mine in groups.items():
        axes = places[model, task]
        for name, colour in (("base", INK), (task, SERIES[0])):
            curves = pd.DataFrame([row.series[f"choice_{name}"] for row in mine], columns=mine[0].series["alpha"])
            mean, std = curves.mean(), curves.std().fillna(0)
            axes.plot(mean.index, mean, color=colour, marker="o", markersize=3, label=name)
            axes.fill_between(mean.index, mean - std, mean + std, color=colour, alpha=0.15, linewidth=0)
        for row in mine:
            axes.axvline(row.series["chosen"][0], color=GREY, linewidth=0.9, linestyle=(0, (3, 2)))
        axes.set_title(f"{model}: {task}", size=9.5)
        axes.set_xlabel("weight of the tuned network (α)")
        axes.legend(loc="best", fontsize=8)
    for line in panels:
        line[0].set_ylabel("top-1 on held-out images (%)")
    return figure


def _cheapest(frame: pd.DataFrame) -> list[str]:
    """Labels by the number of parameters they train."""
    return list(frame.groupby("label")["trainable_parameters"].min().sort_values(kind="stable").index)


@styled
def plot_skip_weights(
    blocks: Sequence[str], pairs: Sequence[Sequence[tuple[int, int]]], weights: Sequence[ArrayLike]
) -> Figure:
    """Mean, standard deviation and histogram of the weights [N, K] of each block; rows are `to`, columns `from`.

    The scales are 0 to 1 for means and histograms, 0 to 0.5 for deviations, wider where learned weights leave these.
    """
    figure, axes = plt.subplots(3, len(blocks), figsize=(1.2 + 2.6 * len(blocks), 7.4), squeeze=False)
    for column, (block, edges, value) in enumerate(zip(blocks, pairs, map(np.asarray, weights), strict=True)):
        spread = value.std(0)
        _matrix(axes[0, column], f"{block}: mean", edges, value.mean(0).tolist(), 1.0)
        _matrix(axes[1, column], f"{block}: std", edges, spread.tolist(), 0.5)
        low, high = min(0.0, float(value.min())), max(1.0, float(value.max()))
        axes[2, column].hist(value.flatten(), bins=40, range=(low, high), color=mpl.colormaps["viridis"](0.35))
        axes[2, column].set_xlabel("weight, all samples and skips")
    figure.tight_layout()
    plt.close(figure)
    return figure


def _matrix(axis: Axes, title: str, edges: Sequence[tuple[int, int]], numbers: Sequence[float], top: float) -> None:
    """A number for each connection as a coloured field, on a scale from 0 to `top` or as far as the numbers go."""
    n = max(i for _, i in edges)
    low, high = min(0.0, *numbers), max(top, *numbers)
    matrix = np.full((n, n), np.nan)
    for (j, i), number in zip(edges, numbers, strict=True):
        matrix[i - 1, j] = number
        if n <= 6:
            tint = "white" if number < low + 0.6 * (high - low) else INK
            axis.text(j, i - 1, f"{number:.2f}", ha="center", va="center", color=tint, fontsize=8)
    colours = mpl.colormaps["viridis"].with_extremes(bad="white")
    image = axis.imshow(matrix, vmin=low, vmax=high, cmap=colours)
    axis.grid(False)
    axis.set_title(title)
    axis.set_xticks(range(n), [str(j) for j in range(n)])
    axis.set_yticks(range(n), [str(i) for i in range(1, n + 1)])
    axis.set_xlabel("from node")
    axis.set_ylabel("to node")
    axis.figure.colorbar(image, ax=axis, fraction=0.046)


PLOTS = {
    "parameters": Plot(
        "What a task costs",
        "Accuracy on the task against the parameters trained for it, its classifier left out; mean and one sample "
        "standard deviation over seeds.",
        parameters,
    ),
    "interpolation": Plot(
        "Between the base and the tuned network",
        "PAINT on held-out images: mean over seeds, the band is one sample standard deviation. Dashed: the weights "
        "chosen.",
        interpolation,
    ),
}
register_plots("patch", PLOTS)
