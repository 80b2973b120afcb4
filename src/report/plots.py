"""The plots of each entry, with the words that go with them; `save` writes one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from src.core.types import Row
from src.report import figures
from src.report.style import save

__all__ = ["PICTURES", "Picture", "save"]


@dataclass(frozen=True)
class Picture:
    """A plot of an entry's rows as the report and the README show it."""

    title: str
    caption: str
    draw: Callable[[Sequence[Row]], Figure]


PICTURES: dict[str, dict[str, Picture]] = {
    "flips": {
        "heat_map": Picture(
            "Complementary knowledge of every pair",
            "Share of images that the teacher (line) gets right and the student (column) gets wrong. Models are "
            "ordered by average-linkage clustering on the share of images that only one of two gets right.",
            figures.heat_map,
        ),
        "gap_scatter": Picture(
            "Complementary knowledge and accuracy gap",
            "Each point is an ordered pair. ρ_pos cannot be less than the gap: nothing lies below the dashed line.",
            figures.gap_scatter,
        ),
        "entropy_scatter": Picture(
            "Spread over the classes",
            "Entropy of the positive flips over the classes; the dotted line is a uniform spread.",
            figures.entropy_scatter,
        ),
        "class_histogram": Picture(
            "Positive flips by class",
            "Positive flips by class where the teacher is weakest, equal and strongest. Dashed: mean over the classes.",
            figures.class_histogram,
        ),
        "ensemble_gain": Picture(
            "Two models together",
            "Accuracy beyond the better of the two when the more confident one decides, and when an oracle would.",
            figures.ensemble_gain,
        ),
    },
    "pretrain": {
        "training_curves": Picture(
            "Training curves", "Mean over seeds; the band is one sample standard deviation.", figures.training_curves
        )
    },
}
