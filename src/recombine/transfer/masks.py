"""Whom each sample is learned from: the initial student, one of the teachers, several, or nobody.

A mask gives weights [K, B] to the K frozen networks `candidates` (logits [B, C] each, the initial student first) for
the B samples. The target of a sample is their mixture; a sample whose weights are all 0 is left out.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from recombine.transfer.sample_selection import find_flips

__all__ = ["All", "Confidence", "FlipMask", "Mask", "mix"]


class Mask:
    """Weights of the candidates for each sample; a mask of your own derives from it."""

    reads_labels = False
    calibrated = False
    """Whether logits are divided by a temperature for each candidate, fitted to validation images."""
    temperatures: Sequence[float] | None = None
    """One for each candidate, set by `calibrate`."""

    def __init__(self, name: str) -> None:
        """`name` is its part of the method's name in rows."""
        self.name = name

    def calibrate(self, temperatures: Sequence[float]) -> None:
        """Take the temperatures at which the candidates' probabilities fit the labels best."""
        self.temperatures = temperatures

    def chosen(self, count: int) -> Sequence[int]:
        """Which of `count` candidates may ever teach."""
        return range(count)

    def __call__(self, student: Tensor, candidates: Sequence[Tensor], labels: Tensor | None) -> Tensor:
        """Weights [K, B]; `student` are logits [B, C] of the student in training."""
        raise TypeError(f"{type(self).__name__} gives no weights")


class Confidence(Mask):
    """Each sample from whoever is most confident of it (data partitioning), or from all by their confidence.

    `by`: label (the probability of the true class), maximum (of any class) or entropy (minus it, in nats). With a
    `softness` s above 0 the weights are softmax(log(confidence) / s) over the candidates (entropy: of minus the
    entropy), which is the choice of one again as s goes to 0. Ties go to the first candidate, the initial student.
    """

    def __init__(self, name: str, by: str = "label", softness: float = 0.0, calibrated: bool = False) -> None:
        """`calibrated`: compare confidences at the temperature of each network that fits validation labels best."""
        super().__init__(name)
        self.by, self.softness, self.calibrated = by, softness, calibrated
        self.reads_labels = by == "label"

    def __call__(self, student: Tensor, candidates: Sequence[Tensor], labels: Tensor | None) -> Tensor:
        """Weights [K, B] that sum to 1."""
        scores = torch.stack([self._score(logits, place, labels) for place, logits in enumerate(candidates)])
        if self.softness:
            return (scores / self.softness).softmax(0)
        return F.one_hot(scores.argmax(0), len(candidates)).T.float()

    def _score(self, logits: Tensor, place: int, labels: Tensor | None) -> Tensor:
        """Log of the confidence, or minus the entropy, [B]."""
        temperature = self.temperatures[place] if self.temperatures is not None else 1.0
        logs = F.log_softmax(logits.float() / temperature, dim=1)
        if self.by == "entropy":
            return (logs.exp() * logs).sum(1)
        if self.by == "maximum":
            return logs.amax(1)
        assert labels is not None, "the probability of the label needs labels"
        return logs.gather(1, labels[:, None])[:, 0]


class FlipMask(Mask):
    """By who of the first teacher and the student in training is right.

    `rule`: teacher_on_positive (else the initial student), initial_on_negative (else the teacher), positive_only
    (samples that the teacher alone gets right, no others) or not_negative (all but those the student alone gets right).
    """

    reads_labels = True

    def __init__(self, name: str, rule: str = "teacher_on_positive") -> None:
        super().__init__(name)
        self.rule, self.alone = rule, rule in ("positive_only", "not_negative")

    def chosen(self, count: int) -> Sequence[int]:
        """The first teacher, and unless samples are left out the initial student."""
        return (1,) if self.alone else (0, 1)

    def __call__(self, student: Tensor, candidates: Sequence[Tensor], labels: Tensor | None) -> Tensor:
        """Weights [K, B], 0 or 1."""
        assert labels is not None, "flips are counted with labels"
        flips = find_flips(student, candidates[1], labels)
        to_teacher = flips.positive if self.rule in ("teacher_on_positive", "positive_only") else ~flips.negative
        weights = torch.zeros(len(candidates), len(labels), device=labels.device)
        weights[0] = torch.zeros_like(weights[0]) if self.alone else (~to_teacher).float()
        weights[1] = to_teacher.float()
        return weights


class All(Mask):
    """Every sample from one side: `side` teachers (several with equal weights) or initial (the student itself)."""

    def __init__(self, name: str, side: str = "teachers") -> None:
        super().__init__(name)
        self.side = side

    def chosen(self, count: int) -> Sequence[int]:
        """One side."""
        return (0,) if self.side == "initial" else range(1, count)

    def __call__(self, student: Tensor, candidates: Sequence[Tensor], labels: Tensor | None) -> Tensor:
        """Weights [K, B] that sum to 1."""
        first = torch.arange(len(candidates), device=student.device) == 0
        weights = (first if self.side == "initial" else ~first).float()
        return (weights / weights.sum())[:, None].expand(-1, len(student))


def mix(candidates: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Target logits [B, C]: log sum_k w_k softmax(z_k), or the very logits where one candidate has the whole weight.

    A sample without weights gets the first candidate's; nobody learns from it.
    """
    logits = torch.stack(list(candidates)).float()
    chosen = weights.argmax(0)
    one = logits[chosen, torch.arange(logits.shape[1], device=logits.device)]
    logs = F.log_softmax(logits, dim=2) + weights.clamp(min=1e-30).log()[:, :, None]
    whole = (weights.amax(0) == weights.sum(0))[:, None]
    return torch.where(whole, one, logs.logsumexp(0))
