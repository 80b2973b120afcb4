"""Data partitioning: which frozen network each sample is learned from (section 3.4), as pure functions on logits.

`candidates` are logits [B, C] of the frozen networks, the initial student first. A winner is a position among them,
so ties go to the initial student, and winner 0 means that the student keeps what it knew.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Flips", "confidence", "flips", "most_confident", "select", "shares"]


class Flips(NamedTuple):
    """Samples on which teacher and student disagree about being right, bool [B] each."""

    positive: Tensor
    """Only the teacher is right."""
    negative: Tensor
    """Only the student is right."""


def confidence(logits: Tensor, labels: Tensor | None = None) -> Tensor:
    """Softmax probability [B] of the true class, or without labels the largest one."""
    probabilities = logits.float().softmax(1)
    return probabilities.amax(1) if labels is None else probabilities.gather(1, labels[:, None])[:, 0]


def most_confident(candidates: Sequence[Tensor], labels: Tensor | None = None) -> Tensor:
    """The candidate with the largest `confidence` for each sample, int64 [B]; the first one wins ties."""
    return torch.stack([confidence(logits, labels) for logits in candidates]).argmax(0)


def select(candidates: Sequence[Tensor], winner: Tensor) -> Tensor:
    """Logits [B, C] of each sample's winner [B]."""
    if len(candidates) == 2:
        return torch.where((winner == 1)[:, None], candidates[1], candidates[0])
    samples = torch.arange(len(winner), device=winner.device)
    return torch.stack(list(candidates))[winner, samples]


def flips(student: Tensor, teacher: Tensor, labels: Tensor) -> Flips:
    """Positive and negative flips of the teacher with respect to the student, from logits [B, C] and labels [B]."""
    student_right, teacher_right = student.argmax(1) == labels, teacher.argmax(1) == labels
    return Flips(teacher_right & ~student_right, student_right & ~teacher_right)


def shares(flip: Flips) -> dict[str, Tensor]:
    """How many samples of the batch flip one way, the other, or neither, percent, 0-d each."""
    positive, negative = (100 * side.float().mean() for side in flip)
    return {"positive_flips": positive, "negative_flips": negative, "neutral_flips": 100 - positive - negative}
