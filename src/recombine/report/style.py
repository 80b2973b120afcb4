"""The style of all plots, and how they are written."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from PIL import Image

from recombine.core.errors import ConfigError
from recombine.core.types import Row
from recombine.report.rows import named, one_setting

__all__ = [
    "BLUE",
    "GREEN",
    "GREY",
    "INK",
    "ORANGE",
    "RED",
    "SERIES",
    "chart_theme",
    "measured",
    "save",
    "styled",
    "svg",
]

BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#8a8f98"
SERIES = (BLUE, RED, GREEN, "#CC79A7", ORANGE, "#56B4E9", "#4d4d4d", "#a6761d")
"""Okabe and Ito's colours: distinguishable with every common colour blindness."""
INK = "#24292f"
STYLE: Any = {
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "axes.edgecolor": "#b8bec6",
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.labelsize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e7eaee",
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": "#57606a",
    "ytick.color": "#57606a",
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "figure.titlesize": 12,
    "svg.hashsalt": "recombine",
}
PNG_LIMIT = 200_000
"""Bytes of a PNG; larger ones are reduced to a palette of 256 colours."""


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Run a drawing function under the shared style, whatever the caller's matplotlib settings are."""

    @wraps(draw)
    def drawn(*arguments: object, **options: object) -> Figure:
        settings: Any = {**mpl.rcParamsDefault, **STYLE, "backend": mpl.rcParams["backend"]}
        with mpl.rc_context(settings):
            return draw(*arguments, **options)

    return drawn


def measured(
    rows: Sequence[Row], metrics: Sequence[str] = (), series: Sequence[str] = (), across: Sequence[str] = ()
) -> list[Row]:
    """The successful rows that have all these metrics and series, methods with their variants.

    Raises:
        ConfigError: there is none, or they are of several settings that the picture is not `across`.
    """
    found = [named(row) for row in rows if row.status == "ok" and row.metrics.keys() >= {*metrics}]
    found = [row for row in found if all(row.series.get(name) for name in series)]
    if not found:
        raise ConfigError(f"none of {len(rows)} rows has {', '.join([*metrics, *series])}: nothing to plot")
    one_setting(found, across)
    return found


def chart_theme() -> dict[str, Any]:
    """The same style for the page's interactive charts: a config of Vega-Lite, less what light and dark differ in."""
    axis = {"titleFontSize": 12, "labelFontSize": 11, "titleFontWeight": "normal", "labelLimit": 220, "titleLimit": 400}
    return {
        "font": "system-ui, sans-serif",
        "range": {"category": list(SERIES), "heatmap": {"scheme": "blues"}, "ramp": {"scheme": "blues"}},
        "axis": axis,
        "legend": {"labelLimit": 260, "symbolLimit": 40},
        "mark": {"color": BLUE},
        "view": {"stroke": None},
    }


def svg(figure: Figure) -> str:
    """The figure as an SVG document without a date, so that the same rows give the same bytes."""
    buffer = io.StringIO()
    with mpl.rc_context(STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def save(figure: Figure, path: str | Path) -> Path:
    """Write the figure as `path`'s suffix says (png, svg, pdf); a PNG larger than 200 KB gets a palette."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".svg":
        path.write_text(svg(figure), encoding="utf-8")
        return path
    figure.savefig(path, dpi=150, metadata={"Software": None} if path.suffix == ".png" else None)
    if path.suffix == ".png" and path.stat().st_size > PNG_LIMIT:
        with Image.open(path) as image:
            reduced = image.convert("RGB").quantize(256)
        reduced.save(path, optimize=True)
    return path
