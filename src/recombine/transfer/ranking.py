"""Which teacher should I use? Candidates ranked by what they know beyond the student, before any training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from recombine.core.errors import ConfigError
from recombine.core.types import Row
from recombine.data import Data
from recombine.engine.evaluate import Predictions
from recombine.models import Model
from recombine.run.run import Run
from recombine.transfer import networks, training
from recombine.transfer.assignment import most_confident, select
from recombine.transfer.checks import list_problems, name_of, network_problems, same
from recombine.transfer.metrics import complementary, percent

if TYPE_CHECKING:
    from omegaconf import DictConfig

__all__ = ["check", "outlook", "rank"]


def check(cfg: DictConfig) -> list[str]:
    """Problems of the student and of every candidate, without loading any."""
    if problems := list_problems("candidates", cfg.candidates, 1):
        return problems
    candidates = {f"candidate {name_of(node)}": node for node in cfg.candidates}
    return network_problems(cfg, {"student": cfg.student, **candidates})


def rank(cfg: DictConfig, run: Run, data: Data, student: Model) -> Iterator[Row]:
    """A row for each candidate, the one with most complementary knowledge first."""
    teachers = {name_of(node): networks.open_teacher(cfg, run, data, node) for node in cfg.candidates}
    twins = [name for name, teacher in teachers.items() if teacher.digest() == student.digest()]
    if twins:
        raise ConfigError(same(cfg.student.name, twins[0]))
    said = training.predictions(cfg, run, data, {"": student, **teachers})
    outlooks = {name: outlook(said[""], said[name]) for name in teachers}
    order = sorted(outlooks, key=lambda name: -outlooks[name]["positive_flips_before"])
    for place, name in enumerate(order, start=1):
        names = {"student": cfg.student.name, "teacher": name, "method": "rank"}
        where = {"dataset": cfg.dataset.name, "fraction": cfg.dataset.fraction, "split": cfg.split}
        yield Row(cell={**names, **where}, metrics={"rank": float(place), **outlooks[name]})


def outlook(student: Predictions, teacher: Predictions) -> dict[str, float]:
    """What a teacher promises for a student, percent: its flips, both networks' accuracy, where it would be asked."""
    labels = student.labels.numpy()
    classes = {role: p.logits.argmax(1).numpy() for role, p in (("student", student), ("teacher", teacher))}
    accuracy = {role: percent(np.equal(predicted, labels)) for role, predicted in classes.items()}
    candidates = [student.logits, teacher.logits]
    winners = {name: most_confident(candidates, known) for name, known in (("", student.labels), ("_u", None))}
    ensemble = select(candidates, winners["_u"]).argmax(1).numpy()
    flips = complementary(classes["student"], classes["teacher"], labels)
    return {
        **{f"{name}_before": value for name, value in flips.items()},
        "accuracy_before": accuracy["student"],
        "accuracy_teacher": accuracy["teacher"],
        "accuracy_gap": accuracy["teacher"] - accuracy["student"],
        "ensemble_accuracy": percent(np.equal(ensemble, labels)),
        **{f"to_teacher{name}": percent((winner == 1).numpy()) for name, winner in winners.items()},
    }
