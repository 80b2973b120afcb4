"""Plots of pretraining, from rows alone."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from recombine.core.types import Row
from recombine.report.columns import natural
from recombine.report.registry import Plot, register_plots
from recombine.report.style import SERIES, measured, styled

__all__ = ["PLOTS", "training_curves"]


@styled
def training_curves(rows: Sequence[Row]) -> Figure:
    """Training loss and test accuracy by epoch, one curve for each cell: mean and standard deviation over seeds."""
    found = measured(rows, series=["epoch"])
    constant = {key for key in found[0].cell if len({str(row.cell.get(key)) for row in found}) == 1}
    groups: dict[str, list[Row]] = {}
    for row in found:
        parts = [str(value) for key, value in row.cell.items() if key not in constant or key == "model"]
        groups.setdefault(", ".join(parts), []).append(row)
    figure = Figure(figsize=(8.4, 3.5), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, series, label in zip(
        panels, ("train_loss", "accuracy"), ("training loss (nats)", "accuracy (%)"), strict=True
    ):
        for colour, (name, members) in zip(
            _colours(len(groups)), sorted(groups.items(), key=lambda g: natural(g[0])), strict=True
        ):
            _band(axes, members, series, colour, name)
        axes.set(xlabel="epoch", ylabel=label)
        axes.xaxis.get_major_locator().set_params(integer=True)
    panels[1].legend(loc="best")
    return figure


def _colours(n: int) -> list:
    return list(SERIES[:n]) if n <= len(SERIES) else list(mpl.colormaps["viridis"](np.linspace(0, 0.92, n)))


def _band(axes: Axes, rows: Sequence[Row], series: str, colour: object, name: str) -> None:
    """Mean and standard deviation (ddof 1) over the rows, by epoch."""
    points = pd.concat(
        pd.DataFrame({"epoch": row.series["epoch"], "value": row.series.get(series, [None] * len(row.series["epoch"]))})
        for row in rows
    )
    curve = points.astype(float).dropna().groupby("epoch")["value"].agg(["mean", "std", "count"])
    label = f"{name} (n = {len(rows)})" if len(rows) > 1 else name
    axes.plot(curve.index, curve["mean"], color=colour, label=label, linewidth=1.8, marker="o", markersize=3)
    band = curve["std"].fillna(0)
    axes.fill_between(curve.index, curve["mean"] - band, curve["mean"] + band, color=colour, alpha=0.18, linewidth=0)


PLOTS = {
    "training_curves": Plot(
        "Training curves", "Mean over seeds; the band is one sample standard deviation.", training_curves
    )
}
register_plots("pretrain", PLOTS)
