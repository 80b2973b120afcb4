"""Distillation losses as pure functions on logits: [B, C] in, one value per sample [B] out."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["cross_entropy", "kl_divergence", "masked_mean"]


def kl_divergence(student: Tensor, target: Tensor, temperature: float = 1.0, topk: int | None = None) -> Tensor:
    """T^2 KL(softmax(target / T) || softmax(student / T)) of each sample in nats, [B].

    With `topk` only the target's k largest logits and the student's at the same classes enter, both renormalised.
    """
    if topk is not None and topk < target.shape[1]:
        target, classes = target.topk(topk, dim=1)
        student = student.gather(1, classes)
    targets = F.log_softmax(target / temperature, dim=1)
    inputs = F.log_softmax(student / temperature, dim=1)
    return temperature**2 * F.kl_div(inputs, targets, reduction="none", log_target=True).sum(1)


def cross_entropy(
    logits: Tensor, labels: Tensor, *, label_smoothing: float = 0.0, on_probabilities: bool = False
) -> Tensor:
    """Cross entropy of each sample in nats, [B].

    Deviation: the authors' code applies it to softmax probabilities as if they were logits, and smooths these instead
    of the labels. `on_probabilities` does the same, to reproduce the published numbers.
    """
    if not on_probabilities:
        return F.cross_entropy(logits, labels, label_smoothing=label_smoothing, reduction="none")
    probabilities = (1 - label_smoothing) * logits.softmax(1) + label_smoothing / logits.shape[1]
    return F.cross_entropy(probabilities, labels, reduction="none")


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of `values` [B] where the bool `mask` [B] holds, 0-d; 0 where it holds nowhere."""
    return torch.where(mask, values, 0.0).sum() / mask.sum().clamp(min=1)
