"""Pictures of a finished run's rows, in its folder and with its tracker."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from recombine.core.errors import ConfigError
from recombine.core.types import Row
from recombine.report.registry import Plot
from recombine.report.style import save

if TYPE_CHECKING:
    from recombine.run.run import Run

__all__ = ["save_plots"]

log = logging.getLogger(__name__)


def save_plots(plots: Mapping[str, Plot], rows: Sequence[Row], run: Run) -> None:
    """Write every plot that a run's rows can be drawn as to its folder, and log it."""
    for name, plot in plots.items():
        try:
            path = save(plot.draw(rows), run.dir / "plots" / f"{name}.png")
        except ConfigError as error:  # not all rows hold what the plot shows
            log.info("plot %s is left out: %s", name, error)
        else:
            run.tracker.image(name, path, f"{plot.title}: {plot.caption}")
    log.info("Plots are in %s", run.dir / "plots")
