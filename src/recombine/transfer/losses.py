"""Distillation losses on logits: [B, C] in, one value per sample [B] out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recombine.core.distributed import divisor, gather_batch

__all__ = ["DIST", "DKD", "KL", "DistillationLoss", "cross_entropy", "kl_divergence", "masked_mean", "standardize"]


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
    return torch.where(mask, values, 0.0).sum() / divisor(mask.sum())


def standardize(logits: Tensor) -> Tensor:
    """Logits [B, C] with mean 0 and standard deviation 1 over the classes (Sun et al., CVPR 2024)."""
    return (logits - logits.mean(1, keepdim=True)) / (logits.std(1, keepdim=True) + 1e-7)


class DistillationLoss(nn.Module):
    """How a sample is learned from its target; a loss of your own derives from it.

    With a `final_temperature` the temperature moves from `temperature` in the first epoch to it in the last, by as much
    in each (Jafari et al., Annealing Knowledge Distillation, EACL 2021).
    """

    reads_labels = False
    reads_features = False
    """Whether it compares features, see `recombine.transfer.feature_losses`."""

    def __init__(self, name: str, temperature: float = 1.0, final_temperature: float | None = None) -> None:
        """`name` is its part of the method's name in rows."""
        super().__init__()
        self.name, self.temperature, self.first = name, temperature, temperature
        self.last = temperature if final_temperature is None else final_temperature

    def on_epoch(self, epoch: int, epochs: int) -> None:
        """Set the temperature of an epoch out of `epochs`."""
        self.temperature = self.first + (self.last - self.first) * min(1.0, epoch / max(1, epochs - 1))

    def forward(self, student: Tensor, target: Tensor, labels: Tensor | None) -> Tensor:
        """From logits [B, C] to a value for each sample, [B]."""
        raise TypeError(f"{type(self).__name__} defines no forward(student, target, labels)")


class KL(DistillationLoss):
    """T^2 KL(target || student), see `kl_divergence`; with `standardized`, of standardised logits."""

    def __init__(self, name: str, *, topk: int | None = None, standardized: bool = False, **options: Any) -> None:
        """`options` are those of `DistillationLoss`."""
        super().__init__(name, **options)
        self.topk, self.standardized = topk, standardized

    def forward(self, student: Tensor, target: Tensor, labels: Tensor | None) -> Tensor:
        """Of each sample, [B]."""
        if self.standardized:
            student, target = standardize(student), standardize(target)
        return kl_divergence(student, target, self.temperature, self.topk)


class DKD(DistillationLoss):
    """Decoupled knowledge distillation (Zhao et al., CVPR 2022): T^2 (alpha KL(b_t || b_s) + beta KL(q_t || q_s)).

    b is the probability of the label and of all others together, q the probabilities of the others among themselves.
    """

    reads_labels = True

    def __init__(self, name: str, *, alpha: float = 1.0, beta: float = 8.0, **options: Any) -> None:
        """`options` are those of `DistillationLoss`."""
        super().__init__(name, **options)
        self.alpha, self.beta = alpha, beta

    def forward(self, student: Tensor, target: Tensor, labels: Tensor | None) -> Tensor:
        """Of each sample, [B]."""
        assert labels is not None, "DKD tells the label from the other classes"
        is_label = F.one_hot(labels, student.shape[1]).bool()
        (student_pair, student_rest), (target_pair, target_rest) = (
            self._decouple(logits / self.temperature, is_label) for logits in (student, target)
        )
        target_class = F.kl_div(student_pair, target_pair, reduction="none", log_target=True).sum(1)
        others = F.kl_div(student_rest, target_rest, reduction="none", log_target=True).sum(1)
        return self.temperature**2 * (self.alpha * target_class + self.beta * others)

    def _decouple(self, logits: Tensor, is_label: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities of label and rest [B, 2], and of the rest among themselves [B, C - 1]."""
        rest = logits[~is_label].view(len(logits), -1)
        pair = torch.stack([logits[is_label], rest.logsumexp(1)], dim=1)
        return F.log_softmax(pair, dim=1), F.log_softmax(rest, dim=1)


class DIST(DistillationLoss):
    """Correlations instead of probabilities (Huang et al., NeurIPS 2022): T^2 (beta d(rows) + gamma d(columns)).

    d is 1 - Pearson's correlation of student and target: of a sample's class probabilities (rows), and of a class's
    probabilities over the batch (columns, the mean over classes, the same for every sample).
    """

    def __init__(self, name: str, *, beta: float = 1.0, gamma: float = 1.0, **options: Any) -> None:
        """`options` are those of `DistillationLoss`."""
        super().__init__(name, **options)
        self.beta, self.gamma = beta, gamma

    def forward(self, student: Tensor, target: Tensor, labels: Tensor | None) -> Tensor:
        """Of each sample, [B]; the mean over a batch is the loss of the paper."""
        p, q = ((logits / self.temperature).softmax(1) for logits in (student, target))
        columns = _correlation_distance(gather_batch(p).T, gather_batch(q).T).mean()
        distance = self.beta * _correlation_distance(p, q) + self.gamma * columns
        return self.temperature**2 * distance


def _correlation_distance(a: Tensor, b: Tensor) -> Tensor:
    """1 - Pearson's correlation of rows."""
    return 1 - F.cosine_similarity(a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True), dim=1, eps=1e-8)
