"""What a transfer changed, from the predictions of three networks on the same images.

`before`, `after` and `teacher` are predicted classes [n]; values are percent of n unless stated otherwise.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import entropy

from recombine.flips.top_classes import select_top_classes

__all__ = [
    "TOP_PERCENTAGES",
    "accuracy_changes",
    "complementary_knowledge",
    "count_per_class",
    "percent",
    "transfer_metrics",
]

TOP_PERCENTAGES = (2, 5, 20, 50, 100)
"""Metrics are reported for the classes that hold this many percent of the teacher's positive flips."""


def accuracy_changes(before: ArrayLike, after: ArrayLike, labels: ArrayLike) -> dict[str, float]:
    """Transfer delta and its two sides: transfer_delta = knowledge_gain - knowledge_loss."""
    was, now = np.asarray(before) == labels, np.asarray(after) == labels
    return {
        "accuracy_before": percent(was),
        "accuracy_after": percent(now),
        "transfer_delta": percent(now) - percent(was),
        "knowledge_gain": percent(now & ~was),
        "knowledge_loss": percent(was & ~now),
    }


def complementary_knowledge(student: ArrayLike, teacher: ArrayLike, labels: ArrayLike) -> dict[str, float]:
    """What the teacher knows and the student does not (positive flips), and the other way round."""
    right, teacher_right = np.asarray(student) == labels, np.asarray(teacher) == labels
    return {"positive_flips": percent(teacher_right & ~right), "negative_flips": percent(right & ~teacher_right)}


def count_per_class(mask: NDArray[np.bool_], labels: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """How many of the marked samples each class has, [C]."""
    return np.bincount(labels[mask], minlength=classes)


def transfer_metrics(
    before: NDArray[np.int64],
    after: NDArray[np.int64],
    teacher: NDArray[np.int64],
    labels: NDArray[np.int64],
    classes: int,
    *,
    legacy: bool = False,
) -> tuple[dict[str, float], dict[str, list]]:
    """All metrics of one transfer, and series per class.

    Three transfer rates: `transfer_rate` (gains in classes where the teacher had something to add, over its positive
    flips before), `transfer_rate_after` (the same over its positive flips after, figure 5b) and
    `transfer_rate_strict` (of the samples that only the teacher got right, the fraction that the student now gets
    right). A rate without a denominator, such as that of flips when none are left, is left out.
    `legacy`: see `count_top_classes`.
    """
    was, now, knew = before == labels, after == labels, teacher == labels
    gained, offered, remaining = now & ~was, knew & ~was, knew & ~now
    gains, offers = (count_per_class(mask, labels, classes) for mask in (gained, offered))
    metrics = accuracy_changes(before, after, labels)
    metrics |= {"accuracy_teacher": percent(knew), "accuracy_gap": percent(knew) - metrics["accuracy_before"]}
    for moment, student in (("before", before), ("after", after)):
        metrics |= {f"{k}_{moment}": v for k, v in complementary_knowledge(student, teacher, labels).items()}
    metrics["success"] = 100.0 * (metrics["transfer_delta"] > 0)
    for top in TOP_PERCENTAGES:
        inside = gains[select_top_classes(offers, top, legacy=legacy)].sum()
        metrics |= _rate(f"top{top}_improve", inside, gains.sum())
        metrics |= _rate(f"top{top}_transfer_rate", inside, remaining.sum(), base=100.0 - top)
    metrics |= _rate("other_improve", gains[offers == 0].sum(), gains.sum())
    metrics |= {"entropy_gains": float(entropy(gains))} if gains.any() else {}
    in_offering = gains[offers > 0].sum()
    metrics |= _rate("transfer_rate", in_offering, offered.sum())
    metrics |= _rate("transfer_rate_after", in_offering, remaining.sum())
    metrics |= _rate("transfer_rate_strict", (offered & now).sum(), offered.sum())
    lost = count_per_class(was & ~now, labels, classes)
    series = {"gains_per_class": gains, "losses_per_class": lost, "positive_flips_per_class": offers}
    return metrics, {name: counts.tolist() for name, counts in series.items()}


def percent(mask: NDArray[np.bool_]) -> float:
    """Marked samples, percent."""
    return 100.0 * float(mask.mean())


def _rate(name: str, part: float, whole: float, base: float = 0.0) -> dict[str, float]:
    """`base` plus `part` in percent of `whole`, under its name; nothing where `whole` is 0."""
    return {name: base + 100.0 * float(part) / float(whole)} if whole else {}
