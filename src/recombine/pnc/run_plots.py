"""What the search for a position saw: accuracy of every candidate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from recombine.report.style import BLUE, GREY, ORANGE, RED, save, styled
from recombine.run.run import Run

__all__ = ["draw", "leave"]

LINES = {"original": ("old classes", BLUE), "cloned": ("cloned classes", RED), "average": ("average", ORANGE)}


@styled
def draw(curve: Mapping[str, Sequence], labels: Sequence[str], chosen: int) -> Figure:
    """Accuracies of `curve` by position, and eq. (8) below if it was measured; dashed: the one taken."""
    panels = 2 if "similarity" in curve else 1
    figure = Figure(figsize=(max(4.2, 1.6 + 0.6 * len(labels)), 1.0 + 2.4 * panels), layout="constrained")
    upper, *lower = figure.subplots(panels, squeeze=False, sharex=True)[:, 0]
    for name, (label, colour) in LINES.items():
        upper.plot(range(len(labels)), curve[name], "o-", color=colour, label=label)
    upper.set_ylabel("accuracy (%)")
    upper.legend(loc="best")
    upper.set_title("Where to insert the clone")
    for axes in lower:
        axes.plot(range(len(labels)), curve["similarity"], "o-", color=GREY)
        axes.set_ylabel("similarity, eq. (8)")
    for axes in (upper, *lower):
        axes.axvline(chosen, color=GREY, linestyle="--", linewidth=1, zorder=0)
        axes.set_xticks(range(len(labels)), labels)
    (lower or [upper])[-1].set_xlabel("position, from input to output; images kept for choices")
    return figure


def leave(run: Run, curve: Mapping[str, Sequence], labels: Sequence[str], chosen: int, name: str) -> None:
    """The picture in the run's folder, and at its tracker."""
    run.tracker.image(name, save(draw(curve, labels, chosen), run.dir / "plots" / f"{name}.png"))
