"""What a transfer changed, from which of the same images networks get right, bool [n] each.

Values are percent of n unless stated otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.stats import entropy

from recombine.core.paired import compare_paired
from recombine.flips.top_classes import select_top_classes

__all__ = [
    "TOP_PERCENTAGES",
    "accuracy_changes",
    "compare_with_controls",
    "complementary_knowledge",
    "count_per_class",
    "percent",
    "transfer_metrics",
]

Right = NDArray[np.bool_]
TOP_PERCENTAGES = (2, 5, 20, 50, 100)
"""Metrics are reported for the classes that hold this many percent of the teacher's positive flips."""


def accuracy_changes(before: Right, after: Right) -> dict[str, float]:
    """Transfer delta and its two sides, from which predictions were and are right, bool [n].

    transfer_delta = knowledge_gain - knowledge_loss.
    """
    return {
        "transfer_delta": percent(after) - percent(before),
        "knowledge_gain": percent(after & ~before),
        "knowledge_loss": percent(before & ~after),
        "accuracy_before": percent(before),
        "accuracy_after": percent(after),
    }


def complementary_knowledge(student: Right, teacher: Right) -> dict[str, float]:
    """What the teacher gets right and the student does not (positive flips), and the other way round, bool [n] each."""
    return {"positive_flips": percent(teacher & ~student), "negative_flips": percent(student & ~teacher)}


def compare_with_controls(before: Right, after: Right, controls: Mapping[str, Right]) -> dict[str, float]:
    """The delta and, for each control, the delta minus the control's: points with 95 % intervals over images.

    bool [n] each: which images the student before, after, and trained as the control gets right. `differs_from_x`:
    images on which exactly one of student and control is right, percent.
    """
    metrics = compare_paired(after, before).metrics("transfer_delta")
    for name, control in controls.items():
        gain = compare_paired(after, control)
        metrics |= gain.metrics(f"gain_over_{name}")
        metrics |= {
            f"differs_from_{name}": gain.discordant,
            f"transfer_delta_{name}": percent(control) - percent(before),
        }
    return metrics | {"images": len(after)}


def count_per_class(mask: NDArray[np.bool_], labels: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """How many of the marked samples each class has, [C]."""
    return np.bincount(labels[mask], minlength=classes)


def transfer_metrics(
    before: Right,
    after: Right,
    teacher: Right,
    labels: NDArray[np.int64],
    classes: int,
    *,
    controls: Mapping[str, Right] | None = None,
    legacy: bool = False,
) -> tuple[dict[str, float], dict[str, list]]:
    """All metrics of one transfer, the delta and its attribution first, and series per class.

    Three transfer rates: `transfer_rate_strict` (of the samples that only the teacher got right, the fraction that the
    student now gets right; with a control's name at its end, that the control gets right without ever having seen the
    teacher), and two of the paper, which also count gains that are not the teacher's: `transfer_rate`
    (gains in classes where the teacher had something to add, over its positive flips before) and `transfer_rate_after`
    (the same over its positive flips after, figure 5b). A rate without a denominator, such as that of flips when none
    are left, is left out. `legacy`: see `count_top_classes`.
    """
    gained, lost = after & ~before, before & ~after
    offered, remaining = teacher & ~before, teacher & ~after
    gains, losses, offers = (count_per_class(mask, labels, classes) for mask in (gained, lost, offered))
    metrics = compare_with_controls(before, after, controls or {}) | accuracy_changes(before, after)
    metrics["accuracy_teacher"] = percent(teacher)
    metrics["accuracy_gap"] = metrics["accuracy_teacher"] - metrics["accuracy_before"]
    for name, student in {"": after, **{f"_{name}": right for name, right in (controls or {}).items()}}.items():
        metrics |= _rate(f"transfer_rate_strict{name}", (offered & student).sum(), offered.sum())
    for moment, student in (("before", before), ("after", after)):
        metrics |= {f"{k}_{moment}": v for k, v in complementary_knowledge(student, teacher).items()}
    metrics["success"] = 100.0 * (metrics["transfer_delta"] > 0)
    for top in TOP_PERCENTAGES:
        inside = gains[select_top_classes(offers, top, legacy=legacy)].sum()
        metrics |= _rate(f"top{top}_improve", inside, gains.sum())
    metrics |= _rate("other_improve", gains[offers == 0].sum(), gains.sum())
    metrics |= {"entropy_gains": float(entropy(gains))} if gains.any() else {}
    in_offering = gains[offers > 0].sum()
    metrics |= _rate("transfer_rate", in_offering, offered.sum())
    metrics |= _rate("transfer_rate_after", in_offering, remaining.sum())
    series = {"gains_per_class": gains, "losses_per_class": losses, "positive_flips_per_class": offers}
    return metrics, {name: counts.tolist() for name, counts in series.items()}


def percent(mask: NDArray[np.bool_]) -> float:
    """Marked samples, percent."""
    return 100.0 * float(mask.mean())


def _rate(name: str, part: float, whole: float) -> dict[str, float]:
    """`part` in percent of `whole`, under its name; nothing where `whole` is 0."""
    return {name: 100.0 * float(part) / float(whole)} if whole else {}
