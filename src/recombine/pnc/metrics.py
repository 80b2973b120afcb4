"""What a clone gains and what it costs (section 8); accuracies in percent, in the joint label space of old and new."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from recombine.engine.evaluate import Predictions

__all__ = ["accuracy", "average", "cloned_measures", "percent", "source_measures", "stored_bytes"]


def percent(hits: Tensor) -> float:
    """Share of a bool tensor."""
    return float(hits.double().mean() * 100)


def accuracy(said: Predictions) -> float:
    """Accuracy."""
    return percent(said.logits.argmax(1) == said.labels)


def average(own: Predictions, new: Predictions) -> float:
    """Mean of the accuracies on the target's own images and on the cloned classes."""
    return (accuracy(own) + accuracy(new)) / 2


def source_measures(said: Predictions, outputs: Sequence[int]) -> dict[str, float]:
    """What the source scores on the cloned classes among all of its own, and among these alone (B2).

    The second is 100 for one class by its nature.
    """
    chosen = torch.tensor(outputs)
    there = torch.isin(said.labels, chosen)
    logits, labels = said.logits[there], said.labels[there]
    return {
        "accuracy_source_cloned": percent(logits.argmax(1) == labels),
        "accuracy_source_cloned_own_space": percent(chosen[logits[:, chosen].argmax(1)] == labels),
    }


def stored_bytes(*parts: nn.Module) -> float:
    """What the tensors of all parts take when they are stored."""
    return float(sum(t.numel() * t.element_size() for part in parts for t in part.state_dict().values()))


def cloned_measures(own: Predictions, new: Predictions, target: Tensor) -> dict[str, float]:
    """Ori, Tar, Avg and where they are lost, from logits [N, T + n] on the target's own images and the cloned classes.

    `target`: the target's logits [N, T] on its own images. agreement: the cloned network answers as the target does;
    intrusion: it answers with a cloned class; logit_shift: mean change of the old logits.
    """
    width = target.shape[1]
    original, cloned = accuracy(own), accuracy(new)
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
