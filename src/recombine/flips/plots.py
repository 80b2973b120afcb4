"""Plots of flips, from rows alone: each takes the rows of one dataset and returns a matplotlib Figure."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, TwoSlopeNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.cluster.hierarchy import dendrogram, linkage
from scipy.spatial.distance import squareform

from recombine.core.types import Row
from recombine.report.columns import natural
from recombine.report.registry import Plot, register_plots
from recombine.report.style import BLUE, GREY, INK, RED, measured, styled

__all__ = [
    "PLOTS",
    "class_histogram",
    "cluster",
    "ensemble_gain",
    "entropy_scatter",
    "gap_scatter",
    "heat_map",
    "typical_pairs",
]

LABELS = {
    "rho_pos": r"complementary knowledge $\rho_\mathrm{pos}$ (% of images)",
    "rho_neg": r"negative flips $\rho_\mathrm{neg}$ (% of images)",
    "accuracy_gap": "accuracy gap, teacher − student (points)",
    "agreement": "equal predictions (% of images)",
    "ensemble_accuracy": "accuracy of the ensemble (%)",
    "oracle_accuracy": "accuracy of the oracle (%)",
    "entropy_positive": "entropy of the flips over classes (nats)",
}
CELLS_WITH_NUMBERS = 15
PAIRS_AS_BARS = 20


def real_pairs(rows: Sequence[Row], *metrics: str, series: Sequence[str] = ()) -> list[Row]:
    """Successful rows of ordered pairs of trained models, without the random baseline."""
    return measured([row for row in rows if row.cell.get("baseline", "none") == "none"], metrics, series)


def pair_matrix(rows: Sequence[Row], metric: str) -> pd.DataFrame:
    """The metric of every ordered pair, teachers down and students across, mean over seeds; nan where not measured."""
    frame = pd.DataFrame([{**row.cell, metric: row.metrics[metric]} for row in real_pairs(rows, metric)])
    table = frame.pivot_table(index="teacher", columns="student", values=metric, aggfunc="mean")
    names = sorted({*table.index, *table.columns}, key=natural)
    return table.reindex(index=names, columns=names)


def cluster(rho: pd.DataFrame) -> NDArray[np.float64] | None:
    """Average linkage of the models by the fraction of images that only one of two gets right; None if pairs lack.

    rho_pos(t, s) + rho_pos(s, t) is the Hamming distance between what t and s get right, in percent.
    """
    distance = rho.to_numpy() + rho.to_numpy().T
    np.fill_diagonal(distance, 0)
    if len(rho) < 3 or np.isnan(distance).any():
        return None
    return linkage(squareform(distance, checks=False), method="average", optimal_ordering=True)


@styled
def heat_map(rows: Sequence[Row], metric: str = "rho_pos") -> Figure:
    """A metric of all ordered pairs, models ordered by hierarchical clustering of what they get right."""
    tree = cluster(pair_matrix(rows, "rho_pos"))
    matrix = pair_matrix(rows, metric)
    leaves = dendrogram(tree, no_plot=True)["leaves"] if tree is not None else range(len(matrix))
    matrix = matrix.iloc[list(leaves), list(leaves)]
    side = float(np.clip(2.6 + 0.52 * len(matrix), 5.5, 11))
    figure = Figure(figsize=(side + 1.2, side + 0.4), layout="constrained")
    top, main = figure.subplots(2, 1, gridspec_kw={"height_ratios": [1, 8]}, sharex=True)
    image = _matrix(main, matrix)
    _tree(top, tree)
    figure.colorbar(image, ax=main, label=LABELS.get(metric, metric), shrink=0.8, aspect=30).outline.set_visible(False)
    return figure


def _matrix(axes: Axes, matrix: pd.DataFrame) -> mpl.cm.ScalarMappable:
    values = np.ma.masked_invalid(matrix.to_numpy(float, copy=True))
    np.fill_diagonal(values, np.ma.masked)
    low, high = float(values.min()), float(values.max())
    signed = low < 0 < high
    reach = max(-low, high)
    norm = TwoSlopeNorm(0, -reach, reach) if signed else Normalize(low, high)
    colours = mpl.colormaps["RdBu" if signed else "YlGnBu"].with_extremes(bad="#eceef1")
    image = axes.imshow(values, cmap=colours, norm=norm, aspect="auto", interpolation="nearest")
    axes.set(xlabel="student", ylabel="teacher")
    axes.set_xticks(range(len(matrix)), matrix.columns, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(matrix)), matrix.index)
    axes.grid(False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    if len(matrix) <= CELLS_WITH_NUMBERS:
        for row, column in zip(*np.nonzero(~np.ma.getmaskarray(values)), strict=True):
            dark = np.dot(image.cmap(norm(values[row, column]))[:3], (0.299, 0.587, 0.114)) < 0.55
            text = f"{values[row, column]:.1f}"
            axes.text(column, row, text, ha="center", va="center", size=8.5, color="white" if dark else INK)
    return image


def _tree(axes: Axes, tree: NDArray[np.float64] | None) -> None:
    axes.axis("off")
    if tree is None:
        return
    drawn = dendrogram(tree, no_plot=True)
    for x, y in zip(drawn["icoord"], drawn["dcoord"], strict=True):
        # scipy puts leaf i at 10 i + 5; the matrix has it at i.
        axes.plot((np.array(x) - 5) / 10, y, color=GREY, linewidth=1.2, solid_joinstyle="miter")
    axes.set_ylim(0, None)


def typical_pairs(rows: Sequence[Row]) -> list[Row]:
    """Up to three pairs with counts per class: the weakest teacher's, the most equal one, the strongest teacher's."""
    found = real_pairs(rows, "accuracy_gap", series=["positive_flips_per_class", "images_per_class"])
    gaps = np.array([row.metrics["accuracy_gap"] for row in found])
    places = dict.fromkeys(int(place) for place in (gaps.argmin(), np.abs(gaps).argmin(), gaps.argmax()))
    return [found[place] for place in places]


@styled
def class_histogram(rows: Sequence[Row]) -> Figure:
    """Where a teacher knows more: positive flips by class, sorted, one panel for each typical pair."""
    pairs = typical_pairs(rows)
    figure = Figure(figsize=(3.1 * len(pairs) + 0.9, 3.5), layout="constrained")
    panels = figure.subplots(1, len(pairs), sharey=True, squeeze=False)[0]
    for axes, row in zip(panels, pairs, strict=True):
        counts, images = (np.array(row.series[f"{name}_per_class"]) for name in ("positive_flips", "images"))
        percent = np.sort(100 * counts / np.maximum(images, 1))[::-1]
        width = 0.8 if len(percent) <= 50 else 1.0
        axes.bar(np.arange(1, len(percent) + 1), percent, width, color=BLUE, linewidth=0)
        axes.axhline(percent.mean(), color=RED, linewidth=1.2, linestyle=(0, (4, 2)))
        axes.set_title(f"{row.cell['teacher']}\n→ {row.cell['student']}", size=9.5)
        notes = (
            f"gap {row.metrics['accuracy_gap']:+.2f} points".replace("-", "−"),
            f"mean over classes {percent.mean():.2f} %",
            f"{100 * np.mean(counts == 0):.0f} % of classes without a flip",
        )
        axes.text(
            0.98, 0.97, "\n".join(notes), transform=axes.transAxes, ha="right", va="top", size=8.5, color="#57606a"
        )
        axes.set(xlabel="classes, sorted", xlim=(0.4, len(percent) + 0.6))
        axes.grid(axis="x", visible=False)
    panels[0].set_ylabel("positive flips\n(% of the class's images)")
    panels[0].set_ylim(0, 1.35 * max(panels[0].get_ylim()[1], 1e-9))
    return figure


@styled
def gap_scatter(rows: Sequence[Row]) -> Figure:
    """Complementary knowledge against the accuracy gap: even much weaker teachers have it."""
    found = real_pairs(rows, "rho_pos", "accuracy_gap")
    gap, rho = (np.array([row.metrics[name] for row in found]) for name in ("accuracy_gap", "rho_pos"))
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.subplots()
    reach = 1.08 * max(abs(gap).max(), 1e-9)
    axes.fill_between([0, reach], [0, reach], color="#f3f4f6", zorder=0, linewidth=0)
    axes.plot([0, reach], [0, reach], color=GREY, linewidth=0.9, linestyle=(0, (4, 2)))
    axes.axvline(0, color=GREY, linewidth=1)
    axes.scatter(gap, rho, s=30, color=BLUE, alpha=0.7, edgecolor="white", linewidth=0.5)
    low = int(rho.argmin())
    axes.scatter(gap[low], rho[low], s=90, facecolor="none", edgecolor=RED, linewidth=1.5)
    axes.plot([0, 0.03], [rho[low]] * 2, color=RED, linewidth=2.5, transform=axes.get_yaxis_transform())
    name = f"minimum {rho[low]:.2f} %: {found[low].cell['teacher']} → {found[low].cell['student']}"
    paper = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.5}
    axes.text(0.03, 0.98, name, transform=axes.transAxes, color=RED, size=9, va="top", bbox=paper)
    axes.text(0.98, 0.03, "below the gap: impossible", transform=axes.transAxes, color=GREY, size=9, ha="right")
    axes.set(xlim=(-reach, reach), ylim=(0, 1.08 * max(rho.max(), 1e-9)))
    axes.set(xlabel=LABELS["accuracy_gap"], ylabel=LABELS["rho_pos"].replace(" (", "\n("))
    return figure


@styled
def entropy_scatter(rows: Sequence[Row]) -> Figure:
    """How evenly the knowledge is spread over the classes, against how much there is; dotted: uniform, ln C."""
    found = real_pairs(rows, "rho_pos", "entropy_positive", "entropy_uniform")
    rho, spread = (np.array([row.metrics[name] for row in found]) for name in ("rho_pos", "entropy_positive"))
    uniform = found[0].metrics["entropy_uniform"]
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.subplots()
    axes.axhline(uniform, color=RED, linewidth=1.4, linestyle=(0, (1, 1.5)))
    label = f"uniform over {round(np.exp(uniform))} classes: ln C = {uniform:.3f}"
    axes.annotate(
        label, (0.99, uniform), (0, 4), axes.get_yaxis_transform(), "offset points", ha="right", color=RED, size=9
    )
    colours = axes.scatter(
        rho, spread, s=30, c=[row.metrics["accuracy_gap"] for row in found], cmap="cividis", alpha=0.85
    )
    figure.colorbar(colours, ax=axes, label=LABELS["accuracy_gap"], aspect=30).outline.set_visible(False)
    axes.set(xlim=(0, 1.06 * max(rho.max(), 1e-9)), xlabel=LABELS["rho_pos"], ylabel=LABELS["entropy_positive"])
    room = max(uniform - spread.min(), 0.05)
    axes.set_ylim(spread.min() - 0.08 * room, uniform + 0.12 * room)
    return figure


@styled
def ensemble_gain(rows: Sequence[Row]) -> Figure:
    """What two models get right together beyond the better one: if the more confident predicts, and by an oracle."""
    found: dict[frozenset[str], dict[str, float]] = {}
    for row in real_pairs(rows, "ensemble_accuracy", "oracle_accuracy", "accuracy_teacher", "accuracy_student"):
        found.setdefault(frozenset((row.cell["teacher"], row.cell["student"])), row.metrics)
    best = {pair: max(m["accuracy_teacher"], m["accuracy_student"]) for pair, m in found.items()}
    order = sorted(found, key=lambda pair: found[pair]["ensemble_accuracy"] - best[pair])[-PAIRS_AS_BARS:]
    oracle, ensemble = (
        np.array([found[pair][f"{name}_accuracy"] - best[pair] for pair in order]) for name in ("oracle", "ensemble")
    )
    names = [" + ".join(sorted(pair, key=natural)) for pair in order]
    width = 5.2 + 0.075 * max(map(len, names))
    figure = Figure(figsize=(width, 1.4 + 0.27 * len(order)), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(order))
    axes.barh(places, oracle, 0.72, color="#c9dcec", label="oracle: either is right")
    axes.barh(places, ensemble, 0.36, color=BLUE, label="ensemble: the more confident one decides")
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_yticks(places, names, size=8.5)
    axes.set_xlabel("gain over the better of the two (points)")
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    axes.margins(y=0.01)
    if len(found) > len(order):
        axes.set_title(f"the {len(order)} largest ensemble gains of {len(found)} pairs", size=9.5, weight="normal")
    figure.legend(loc="outside upper left", ncols=2)
    return figure


PLOTS = {
    "heat_map": Plot(
        "Complementary knowledge of every pair",
        "Percentage of images that the teacher (row) gets right and the student (column) gets wrong. Models are "
        "ordered by average-linkage clustering on the images that only one of two gets right.",
        heat_map,
    ),
    "gap_scatter": Plot(
        "Complementary knowledge and accuracy gap",
        "Each point is an ordered pair. ρ_pos cannot be less than the gap: nothing lies below the dashed line.",
        gap_scatter,
    ),
    "entropy_scatter": Plot(
        "Spread over the classes",
        "Entropy of the positive flips over the classes; the dotted line is a uniform spread.",
        entropy_scatter,
    ),
    "class_histogram": Plot(
        "Positive flips by class",
        "Positive flips by class where the teacher is weakest, equal and strongest. Dashed: mean over the classes.",
        class_histogram,
    ),
    "ensemble_gain": Plot(
        "Two models together",
        "Accuracy beyond the better of the two when the more confident one decides, and when an oracle would.",
        ensemble_gain,
    ),
}
register_plots("flips", PLOTS)
