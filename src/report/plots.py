"""The plots of each entry, with the words that go with them; `save` writes one, `leave` those of a run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from src.core.errors import ConfigError
from src.core.types import Row
from src.report import figures, patch, pnc, rates, stitch, teachers, transfer
from src.report.style import save

if TYPE_CHECKING:
    from src.core.run import Run

__all__ = ["PICTURES", "Picture", "leave", "save"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Picture:
    """A plot of an entry's rows as the report and the README show it."""

    title: str
    caption: str
    draw: Callable[[Sequence[Row]], Figure]
    across: tuple[str, ...] = ()
    """Settings whose values it compares, where others show one value at a time."""


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
    "transfer": {
        "gap_curve": Picture(
            "Transfer delta and accuracy gap",
            "Each point is a teacher and student, mean over seeds. By bin of the gap: mean with quartiles, and the "
            "mean of the best quarter, which is what the paper shows.",
            transfer.gap_curve,
        ),
        "success_rates": Picture(
            "Success rates",
            "A point is a student: the share of its teachers that helped. Hollow: students that diverged, left out of "
            "box and line; the first number is the median over all students.",
            transfer.success_rates,
        ),
        "leaderboard": Picture(
            "Transfer to each student", "Mean over teachers, and the range from worst to best.", transfer.leaderboard
        ),
        "transfer_rates": Picture(
            "What was transferred",
            "Left, as in the paper: by the classes that hold the top X % of the knowledge; it tends to 100 by its "
            "definition. Right: the share of the very images that only the teacher got right. Without pairs of equal "
            "accuracy.",
            rates.transfer_rates,
        ),
        "rate_by_size": Picture(
            "Transfer rate and size of the student", "Mean over teachers of another accuracy.", rates.rate_by_size
        ),
        "pair_deltas": Picture(
            "Transfer to each student from each teacher",
            "Mean over seeds; the bar is one sample standard deviation. Below each teacher: its accuracy minus the "
            "student's, in points.",
            transfer.pair_deltas,
        ),
        "outlook": Picture(
            "Which teacher should I use?",
            "Complementary knowledge is known before any training; the delta is what training then gave.",
            transfer.outlook,
        ),
    },
    "multi_teacher": {
        "stages": Picture(
            "Teachers one after the other",
            "Delta, gain and loss relative to the original student by epoch; dashed: the next teacher takes over.",
            teachers.stages,
        ),
    },
    "pnc": {
        "position_curve": Picture(
            "Where a part is inserted",
            "Accuracy on images kept for choices at each position, mean over seeds; the band is one sample standard "
            "deviation. Dashed: the positions taken.",
            pnc.position_curve,
        ),
        "similarity_matrix": Picture(
            "How local a module is",
            "Similarity of the module of a class (line) and the whole source, around images of each class (column). A "
            "module that holds its class alone is bright on the diagonal and dark beside it.",
            pnc.similarity_matrix,
        ),
        "mask_overlap": Picture(
            "Filters that two classes share",
            "Jaccard overlap of the filters kept for two classes, a point for each pair, by layer. Dotted: what two "
            "random masks share.",
            pnc.mask_overlap,
        ),
        "keep_curve": Picture(
            "How many filters stay",
            "Accuracy over the share of filters kept, mean over seeds; the band is one sample standard deviation.",
            pnc.keep_curve,
        ),
        "data_curve": Picture(
            "How many images it takes",
            "Accuracy over the share of the training images, cloning (lines) and Learning without Forgetting (dashed).",
            pnc.data_curve,
            across=("fraction",),
        ),
    },
    "patch": {
        "parameters": Picture(
            "What a task costs",
            "Accuracy on the task against the parameters trained for it, its classifier left out; mean and one sample "
            "standard deviation over seeds.",
            patch.parameters,
        ),
        "interpolation": Picture(
            "Between the base and the tuned network",
            "PAINT on held-out images: mean over seeds, the band is one sample standard deviation. Dashed: the weights "
            "chosen.",
            patch.interpolation,
        ),
    },
    "stitch": {
        "fronts": Picture(
            "Accuracy and cost of offspring",
            "A line is the front of one run, on the images that it was searched on and on test images. Crosses: the "
            "parents A and B and their ensemble. Shaded: as good as one of them or better, and no more expensive. "
            "Networks far below both parents are not shown.",
            stitch.fronts,
        ),
        "switches": Picture(
            "Stitches in use during the search",
            "Median over the archive, mean over seeds. Solid: all stitches that are switched on; dashed: those that "
            "have an effect.",
            stitch.switches,
        ),
        "single_stitches": Picture(
            "What a single stitch costs",
            "Accuracy of all networks with one stitch by the place of its pair. Lines: the networks that receive the "
            "features; the distance to them is the stitching penalty.",
            stitch.single_stitches,
        ),
        "stitch_errors": Picture(
            "Errors of the stitches",
            "Squared error as a share of the variance of the features that a stitch repeats, by the place of its pair. "
            "1 is no better than the mean of each channel.",
            stitch.stitch_errors,
        ),
    },
}


def leave(entry: str, rows: Sequence[Row], run: Run) -> None:
    """Write all pictures of an entry that a run's rows can be drawn as to its folder, and log them."""
    for name, picture in PICTURES[entry].items():
        try:
            path = save(picture.draw(rows), run.dir / "plots" / f"{name}.png")
        except ConfigError as error:  # not all rows hold what the plot shows
            log.info("picture %s is left out: %s", name, error)
        else:
            run.tracker.image(name, path)
    log.info("Pictures are in %s", run.dir / "plots")
