"""Data partitioning as pure functions on logits: which frozen network each sample is learned from.

`candidates` are logits [B, C] of the frozen networks, the initial student first. A winner is a position among them:
ties go to the initial student, and winner 0 means that the student keeps what it knew.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Flips", "confidence", "find_flips", "flip_percentages", "most_confident", "percentage", "select_logits"]


class Flips(NamedTuple):
    """Samples on which exactly one of teacher and student is right, bool [B] each."""

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


def select_logits(candidates: Sequence[Tensor], winner: Tensor) -> Tensor:
    """Logits [B, C] of each sample's winner [B]."""
    if len(candidates) == 2:
        return torch.where((winner == 1)[:, None], candidates[1], candidates[0])
    samples = torch.arange(len(winner), device=winner.device)
    return torch.stack(list(candidates))[winner, samples]


def find_flips(student: Tensor, teacher: Tensor, labels: Tensor) -> Flips:
    """Positive and negative flips of the teacher with respect to the student, from logits [B, C] and labels [B]."""
    student_right, teacher_right = student.argmax(1) == labels, teacher.argmax(1) == labels
    return Flips(teacher_right & ~student_right, student_right & ~teacher_right)


def flip_percentages(flips: Flips) -> dict[str, Tensor]:
    """Positive, negative and neutral flips, percent of the batch, 0-d each."""
    positive, negative = (percentage(side) for side in flips)
    return {"positive_flips": positive, "negative_flips": negative, "neutral_flips": 100 - positive - negative}


def percentage(mask: Tensor) -> Tensor:
    """Samples of the batch that a bool mask [B] holds, percent, 0-d and on the device."""
    return 100 * mask.float().mean()
