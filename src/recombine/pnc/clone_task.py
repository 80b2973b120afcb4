"""What every way of adding classes is given."""

from __future__ import annotations

from dataclasses import dataclass

from recombine.models import Model
from recombine.pnc.data import CloneData
from recombine.pnc.evaluator import CloneEvaluator
from recombine.pnc.trainer import CloneTrainer

__all__ = ["CloneTask"]


@dataclass(frozen=True)
class CloneTask:
    """A pair of frozen networks, their images, and how to train and evaluate on them."""

    target: Model
    source: Model
    data: CloneData
    trainer: CloneTrainer
    evaluator: CloneEvaluator
