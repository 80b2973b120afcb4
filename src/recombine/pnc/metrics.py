"""What a clone gains; accuracies in percent, in the joint label space of old and new classes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from recombine.engine.evaluate import Predictions

__all__ = ["accuracy", "count_bytes", "hits", "joint_metrics", "mean_accuracy", "percent", "source_metrics"]


def percent(true: Tensor) -> float:
    """Percentage of true values in a bool tensor."""
    return float(true.double().mean() * 100)


def accuracy(predictions: Predictions) -> float:
    """Top-1 accuracy."""
    return percent(hits(predictions))


def hits(predictions: Predictions) -> Tensor:
    """Which images are answered right, bool [N]."""
    return predictions.logits.argmax(1) == predictions.labels


def mean_accuracy(old: Predictions, new: Predictions) -> float:
    """Mean of the accuracies on the target's own images and on the cloned classes."""
    return (accuracy(old) + accuracy(new)) / 2


def source_metrics(predictions: Predictions, outputs: Sequence[int]) -> dict[str, float]:
    """What the source scores on the cloned classes among all of its own, and among these alone.

    The second is 100 for one class by its nature.
    """
    columns = torch.tensor(outputs)
    cloned = torch.isin(predictions.labels, columns)
    logits, labels = predictions.logits[cloned], predictions.labels[cloned]
    return {
        "accuracy_source_cloned": percent(logits.argmax(1) == labels),
        "accuracy_source_cloned_own_space": percent(columns[logits[:, columns].argmax(1)] == labels),
    }


def count_bytes(*parts: nn.Module) -> float:
    """What the tensors of all parts take when they are stored."""
    return float(sum(t.numel() * t.element_size() for part in parts for t in part.state_dict().values()))


def joint_metrics(old: Predictions, new: Predictions, target: Tensor) -> dict[str, float]:
    """Accuracies on old and new classes and where they are lost.

    `old` and `new`: logits [N, T + n] on the target's own images and on the cloned classes; `target`: the target's
    logits [N, T] on its own images. agreement: the cloned network answers as the target does; intrusion: it answers
    with a cloned class; logit_shift: mean change of the old logits.
    """
    width = target.shape[1]
    original, cloned = accuracy(old), accuracy(new)
    total = len(old.labels) + len(new.labels)
    return {
        "accuracy_original": original,
        "accuracy_cloned": cloned,
        "accuracy_average": (original + cloned) / 2,
        "accuracy_weighted": (len(old.labels) * original + len(new.labels) * cloned) / total,
        "accuracy_original_own_space": percent(old.logits[:, :width].argmax(1) == old.labels),
        "accuracy_cloned_own_space": percent(new.logits[:, width:].argmax(1) + width == new.labels),
        "right_group": percent(new.logits.argmax(1) >= width),
        "agreement": percent(old.logits.argmax(1) == target.argmax(1)),
        "intrusion": percent(old.logits.argmax(1) >= width),
        "logit_shift": float((old.logits[:, :width] - target).abs().double().mean()),
        "locality_drop": percent(target.argmax(1) == old.labels) - original,
    }
