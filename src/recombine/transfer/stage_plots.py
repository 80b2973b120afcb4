"""Plots of transfer from several teachers."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from recombine.core.types import Row
from recombine.report.style import GREY, SERIES, measured, styled
from recombine.transfer.method_names import name_of

__all__ = ["CURVES", "stages"]

CURVES = {"transfer_delta": "delta", "knowledge_gain": "gain", "knowledge_loss": "loss"}
PANEL = ["student", "teachers", "method", "order"]


@styled
def stages(rows: Sequence[Row]) -> Figure:
    """Delta, gain and loss by epoch through sequential stages, mean over seeds; a panel for each order and method."""
    frame = points_of(measured([row for row in rows if row.cell.get("combine") == "sequential"], series=["epoch"]))
    length = frame["epoch"].max()
    frame["epoch"] += (frame["stage"] - 1) * length
    panels = list(frame.groupby(PANEL))
    told = [key for key in PANEL if key in ("student", "order") or frame[key].nunique() > 1]
    figure = Figure(figsize=(4 * len(panels) + 0.6, 3.4), layout="constrained")
    for axes, (names, part) in zip(figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels, strict=True):
        for (name, label), colour in zip(CURVES.items(), SERIES, strict=False):
            curve = part[part["curve"] == name].groupby("epoch")["value"].mean()
            axes.plot(curve.index, curve, color=colour, marker="o", markersize=3, label=label)
        for stage in range(1, int(part["stage"].max())):
            axes.axvline(stage * length, color=GREY, linewidth=0.9, linestyle=(0, (3, 2)))
        axes.axhline(0, color=GREY, linewidth=0.9)
        axes.set_title(", ".join(name for key, name in zip(PANEL, names, strict=True) if key in told), size=9.5)
        axes.set_xlabel("epoch")
    figure.axes[0].set_ylabel("points")
    figure.axes[0].legend(loc="best", fontsize=8)
    return figure


def points_of(rows: Sequence[Row]) -> pd.DataFrame:
    """One line per point of a curve, with its panel and the number of its stage."""
    points = []
    for row in rows:
        panel = {key: row.cell[key] for key in PANEL} | {"method": name_of(row.cell["method"])}
        number = len(row.cell["teachers"].split("+")) if row.cell["stage"] == "final" else int(row.cell["stage"])
        for name in CURVES:
            for epoch, value in zip(row.series["epoch"], row.series[name], strict=True):
                points.append(panel | {"stage": number, "epoch": epoch, "curve": name, "value": value})
    return pd.DataFrame(points).dropna()
