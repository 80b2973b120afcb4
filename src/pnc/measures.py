"""What a clone gains and what it costs (section 8); accuracies in percent, in the joint label space of old and new."""

from __future__ import annotations

from torch import Tensor

from src.core.evaluate import Predictions

__all__ = ["cloned_measures", "percent"]


def percent(hits: Tensor) -> float:
    """Share of a bool tensor."""
    return float(hits.double().mean() * 100)


def cloned_measures(own: Predictions, new: Predictions, target: Tensor) -> dict[str, float]:
    """Ori, Tar, Avg and where they are lost, from logits [N, T + n] on the target's own images and the cloned classes.

    `target`: the target's logits [N, T] on its own images. agreement: the cloned network answers as the target does;
    intrusion: it answers with a cloned class; logit_shift: mean change of the old logits.
    """
    width = target.shape[1]
    original = percent(own.logits.argmax(1) == own.labels)
    cloned = percent(new.logits.argmax(1) == new.labels)
    total = len(own.labels) + len(new.labels)
    return {
        "accuracy_original": original,
        "accuracy_cloned": cloned,
        "accuracy_average": (original + cloned) / 2,
        "accuracy_weighted": (len(own.labels) * original + len(new.labels) * cloned) / total,
        "accuracy_original_own_space": percent(own.logits[:, :width].argmax(1) == own.labels),
        "accuracy_cloned_own_space": percent(new.logits[:, width:].argmax(1) + width == new.labels),
        "right_group": percent(new.logits.argmax(1) >= width),
        "agreement": percent(own.logits.argmax(1) == target.argmax(1)),
        "intrusion": percent(own.logits.argmax(1) >= width),
        "logit_shift": float((own.logits[:, :width] - target).abs().double().mean()),
        "locality_drop": percent(target.argmax(1) == own.labels) - original,
    }
