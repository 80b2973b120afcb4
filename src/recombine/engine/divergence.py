"""What is reported when a loss, a gradient or the weights stop being finite."""

from __future__ import annotations

import json
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

from recombine.core import distributed
from recombine.core.errors import Diverged, NotFinite
from recombine.core.files import write_atomically
from recombine.engine.checkpoint import LAST
from recombine.engine.training import Training

__all__ = ["explain"]

SHOWN = 8


def explain(error: NotFinite, training: Training) -> Diverged:
    """Write diverged.json beside the checkpoints and return the error that a person reads."""
    samples = _samples(error, training)
    good = training.folder / LAST
    report = {
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
        write_atomically(path, json.dumps(report, indent=1))
    return Diverged(_message(report, path, training.cfg.precision))


def _samples(error: NotFinite, training: Training) -> list[int]:
    """Indices of the samples of the first bad step: read from the loader again, whose order is a pure function."""
    plan = training.plan
    start, count = plan.first_batch(error.step), plan.parts(error.step)
    if error.part is not None:
        start, count = start + error.part, 1
    with closing(training.train.epoch(plan.epoch(error.step), start=start)) as batches:
        mine = [index for batch in islice(batches, count) for index in batch.index.tolist()]
    return [index for indices in distributed.gather(mine) for index in indices]


def _message(report: dict[str, Any], path: Path, precision: str) -> str:
    samples = ", ".join(map(str, report["samples"][:SHOWN])) + (", ..." if len(report["samples"]) > SHOWN else "")
    good = report["checkpoint"]
    kept = f"the last good checkpoint is {good}" if good else "there was no checkpoint yet"
    full = "" if precision == "fp32" else " or engine.precision=fp32"
    before = report["last_log_point"]
    fine = f", everything before step {before} was fine" if before else ""
    return (
        f"training '{report['fit']}': the {report['what']} of step {report['step']} (epoch {report['epoch']}) is not "
        f"finite; noticed at step {report['noticed_at_step']}{fine}\n"
        f"its batch holds the samples {samples} (all in {path}); {kept}\n"
        f"try a lower optimizer.lr (now {report['lr']:g}), a schedule.warmup, engine.grad_clip_norm=1{full}"
    )
