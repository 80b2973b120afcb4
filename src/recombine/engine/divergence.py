"""What is said and written when a loss, a gradient or the weights stop being finite."""

from __future__ import annotations

import json
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recombine.core import distributed
from recombine.core.errors import Diverged
from recombine.core.files import write_atomically
from recombine.engine.checkpoint import LAST

if TYPE_CHECKING:
    from recombine.engine.training import Training

__all__ = ["NotFinite", "explain"]

SHOWN = 8


class NotFinite(ArithmeticError):
    """The first value since the last log point that was not finite."""

    def __init__(self, what: str, step: int, part: int | None = None) -> None:
        super().__init__(f"{what} of step {step}")
        self.what, self.step, self.part = what, step, part
        """loss, gradient or weights; optimizer step; batch of that step's accumulation (None: any of them)."""


def explain(error: NotFinite, training: Training) -> Diverged:
    """Write diverged.json beside the checkpoints and return the error that a person reads."""
    samples = _samples(error, training)
    good = training.folder / LAST
    facts = {
        "fit": training.name,
        "what": error.what,
        "step": error.step,
        "epoch": training.plan.epoch(error.step),
        "noticed_at_step": training.step,
        "last_log_point": training.journal.read_step,
        "samples": samples,
        "lr": training.lr,
        "checkpoint": str(good) if good.exists() else None,
    }
    path = training.folder / "diverged.json"
    if training.run.main:
        write_atomically(path, json.dumps(facts, indent=1))
    return Diverged(_message(facts, path, training.cfg.precision))


def _samples(error: NotFinite, training: Training) -> list[int]:
    """Indices of the samples of the first bad step: the loader is asked again, as its order is addressed."""
    plan = training.plan
    start, count = plan.first_batch(error.step), plan.parts(error.step)
    if error.part is not None:
        start, count = start + error.part, 1
    with closing(training.train.epoch(plan.epoch(error.step), start=start)) as batches:
        own = [index for batch in islice(batches, count) for index in batch.index.tolist()]
    return [index for indices in distributed.gather(own) for index in indices]


def _message(facts: dict[str, Any], path: Path, precision: str) -> str:
    samples = ", ".join(map(str, facts["samples"][:SHOWN])) + (", ..." if len(facts["samples"]) > SHOWN else "")
    good = facts["checkpoint"]
    kept = f"the last good checkpoint is {good}" if good else "there was no checkpoint yet"
    full = "" if precision == "fp32" else " or engine.precision=fp32"
    before = facts["last_log_point"]
    fine = f", everything before step {before} was fine" if before else ""
    return (
        f"training '{facts['fit']}': the {facts['what']} of step {facts['step']} (epoch {facts['epoch']}) is not "
        f"finite; noticed at step {facts['noticed_at_step']}{fine}\n"
        f"its batch holds the samples {samples} (all in {path}); {kept}\n"
        f"try a lower optimizer.lr (now {facts['lr']:g}), a schedule.warmup, engine.grad_clip_norm=1{full}"
    )
