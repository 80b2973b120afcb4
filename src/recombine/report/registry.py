"""What papers add to the report: plots of their rows, and rows made of theirs. The report itself knows no paper."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from recombine.core.types import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["DERIVED", "PLOTS", "Plot", "register_derived", "register_plots"]


@dataclass(frozen=True)
class Plot:
    """A plot of an entry's rows as the report and the documents show it."""

    title: str
    caption: str
    draw: Callable[[Sequence[Row]], Figure]
    across: tuple[str, ...] = ()
    """Settings whose values it compares, where others show one value at a time."""


PLOTS: dict[str, dict[str, Plot]] = {}
"""Entry -> name -> plot; filled by `register_plots`."""
DERIVED: dict[str, Callable[..., list[Row]]] = {}
"""Functions from measured rows to those of a table, by the name that `derived` of a table gives."""


def register_plots(entry: str, plots: Mapping[str, Plot]) -> None:
    """Make plots of an entry's rows known to the report, in this order."""
    PLOTS.setdefault(entry, {}).update(plots)


def register_derived(name: str, function: Callable[..., list[Row]]) -> None:
    """Let tables name `function(rows, **options)` as what makes their rows."""
    DERIVED[name] = function
