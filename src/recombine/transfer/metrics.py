"""What a transfer changed, from the predictions of three networks on the same images (section 6).

`before`, `after` and `teacher` are predicted classes [n]; shares are percent of n unless said otherwise.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import entropy

from recombine.flips.top_classes import holders

__all__ = ["SHARES", "change", "complementary", "per_class", "transfer_measures"]

SHARES = (2, 5, 20, 50, 100)
"""The classes that hold this many percent of the teacher's positive flips are looked at."""


def change(before: ArrayLike, after: ArrayLike, labels: ArrayLike) -> dict[str, float]:
    """Transfer delta and its two sides: transfer_delta = knowledge_gain - knowledge_loss."""
    was, now = np.asarray(before) == labels, np.asarray(after) == labels
    return {
        "accuracy_before": percent(was),
        "accuracy_after": percent(now),
        "transfer_delta": percent(now) - percent(was),
        "knowledge_gain": percent(now & ~was),
        "knowledge_loss": percent(was & ~now),
    }


def complementary(student: ArrayLike, teacher: ArrayLike, labels: ArrayLike) -> dict[str, float]:
    """What the teacher knows and the student does not (positive flips), and the other way round."""
    right, teacher_right = np.asarray(student) == labels, np.asarray(teacher) == labels
    return {"positive_flips": percent(teacher_right & ~right), "negative_flips": percent(right & ~teacher_right)}


def per_class(mask: NDArray[np.bool_], labels: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """How many of the marked samples each class has, [C]."""
    return np.bincount(labels[mask], minlength=classes)


def transfer_measures(
    before: NDArray[np.int64],
    after: NDArray[np.int64],
    teacher: NDArray[np.int64],
    labels: NDArray[np.int64],
    classes: int,
    *,
    legacy: bool = False,
) -> tuple[dict[str, float], dict[str, list]]:
    """All measures of one transfer, and series per class.

    Three transfer rates: `transfer_rate` (gains in classes where the teacher had something to add, over its positive
    flips before), `transfer_rate_after` (the same over its positive flips after, figure 5b) and
    `transfer_rate_strict` (of the very samples that only the teacher got right, the share the student now gets
    right). A rate of nothing, such as that of flips when none are left, is no number and is left out.
    `legacy`: see `holders`.
    """
    was, now, knew = before == labels, after == labels, teacher == labels
    gained, offered, left = now & ~was, knew & ~was, knew & ~now
    gains, offers = (per_class(mask, labels, classes) for mask in (gained, offered))
    metrics = change(before, after, labels)
    metrics |= {"accuracy_teacher": percent(knew), "accuracy_gap": percent(knew) - metrics["accuracy_before"]}
    for moment, student in (("before", before), ("after", after)):
        metrics |= {f"{k}_{moment}": v for k, v in complementary(student, teacher, labels).items()}
    metrics["success"] = 100.0 * (metrics["transfer_delta"] > 0)
    for share in SHARES:
        inside = gains[holders(offers, share, legacy=legacy)].sum()
        metrics |= _rate(f"top{share}_improve", inside, gains.sum())
        metrics |= _rate(f"top{share}_transfer_rate", inside, left.sum(), base=100.0 - share)
    metrics |= _rate("other_improve", gains[offers == 0].sum(), gains.sum())
    metrics |= {"entropy_gains": float(entropy(gains))} if gains.any() else {}
    in_offering = gains[offers > 0].sum()
    metrics |= _rate("transfer_rate", in_offering, offered.sum())
    metrics |= _rate("transfer_rate_after", in_offering, left.sum())
    metrics |= _rate("transfer_rate_strict", (offered & now).sum(), offered.sum())
    lost = per_class(was & ~now, labels, classes)
    series = {"gains_per_class": gains, "losses_per_class": lost, "positive_flips_per_class": offers}
    return metrics, {name: counts.tolist() for name, counts in series.items()}


def percent(mask: NDArray[np.bool_]) -> float:
    """Share of marked samples."""
    return 100.0 * float(mask.mean())


def _rate(name: str, part: float, whole: float, base: float = 0.0) -> dict[str, float]:
    """A share of `whole` in percent on top of `base`, under its name; nothing where there is nothing to share."""
    return {name: base + 100.0 * float(part) / float(whole)} if whole else {}
