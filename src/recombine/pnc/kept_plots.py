"""The plot of what chooses the filters, over the fraction of them that stays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from recombine.core.errors import ConfigError
from recombine.core.types import Row
from recombine.pnc.claims import name_pairs
from recombine.report.registry import Plot, register_plots
from recombine.report.style import INK, SERIES, measured, styled

__all__ = ["choice_curve"]

CHOICES = {
    "pnc_direct": "learned, from the source",
    "pnc_not_joint": "learned, from LIME's models",
    "pnc_taylor": "Taylor",
    "pnc_relevance": "relevance",
    "pnc_magnitude": "magnitude",
    "pnc_random": "chance",
}
"""How methods choose filters, in the order of their colours."""
WHOLE = "pnc_whole"
PANELS = {
    "similarity_cloned": "similarity to the source",
    "module_balanced": "module, balanced (%)",
    "accuracy_average": "average after insertion (%)",
}


@styled
def choice_curve(rows: Sequence[Row]) -> Figure:
    """Module and clone over the fraction of filters kept, a line for each way to choose; bars: standard errors."""
    fixed = [row for row in rows if row.cell.get("method") in (*CHOICES, WHOLE) and _at_one_position(row)]
    found = name_pairs(measured(fixed, list(PANELS)))
    points = pd.DataFrame([{**row.cell, **row.metrics} for row in found])
    if points["keep_ratio"].nunique() < 3:
        raise ConfigError("these rows keep fewer than three fractions of filters: nothing to plot")
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    for axes, (metric, label) in zip(figure.subplots(1, 3), PANELS.items(), strict=True):
        _draw(axes, points, metric)
        axes.set(xlabel="filters kept (%)", ylabel=label)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(CHOICES) + 1)
    return figure


def _at_one_position(row: Row) -> bool:
    """Whether the position was given, and the target's own images trained too."""
    return str(row.cell.get("positions")).isdigit() and row.cell.get("use_target_data") is True


def _draw(axes: Axes, points: pd.DataFrame, metric: str) -> None:
    """The lines of one panel, and the whole source where all filters stay."""
    for number, (method, label) in enumerate(CHOICES.items()):
        mine = points[points["method"] == method].groupby("keep_ratio")[metric].agg(["mean", "std", "count"])
        if len(mine):
            error = (mine["std"] / np.sqrt(mine["count"])).fillna(0)
            style: Any = {"color": SERIES[number], "marker": "o", "markersize": 4, "capsize": 2, "linewidth": 1.4}
            axes.errorbar(100 * mine.index, mine["mean"], error, label=label, **style)
    whole = points[points["method"] == WHOLE][metric]
    if len(whole):
        error = whole.std() / np.sqrt(len(whole)) if len(whole) > 1 else 0
        star: Any = {"color": INK, "marker": "*", "markersize": 9, "capsize": 2, "label": "all filters"}
        axes.errorbar([100], [whole.mean()], [error], **star)


register_plots(
    "pnc",
    {
        "choice_curve": Plot(
            "What chooses the filters",
            "The module by itself (left, middle) and the clone with it (right) over the fraction of filters kept; mean "
            "over pairs of networks, bars are standard errors.",
            choice_curve,
        )
    },
)
