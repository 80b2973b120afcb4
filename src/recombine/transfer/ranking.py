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
from recombine.transfer.metrics import complementary_knowledge, percent
from recombine.transfer.sample_selection import most_confident, select_logits
from recombine.transfer.settings import name_of, same_network

if TYPE_CHECKING:
    from omegaconf import DictConfig

__all__ = ["rank_candidates", "score_candidate"]


def rank_candidates(cfg: DictConfig, run: Run, data: Data, student: Model) -> Iterator[Row]:
    """A row for each candidate, the one with most complementary knowledge first."""
    teachers = {name_of(node): networks.open_teacher(cfg, run, data, node) for node in cfg.candidates}
    twins = [name for name, teacher in teachers.items() if teacher.digest() == student.digest()]
    if twins:
        raise ConfigError(same_network(cfg.student.name, twins[0]))
    predictions = training.predict_split(cfg, run, data, {"": student, **teachers})
    scores = {name: score_candidate(predictions[""], predictions[name]) for name in teachers}
    order = sorted(scores, key=lambda name: -scores[name]["positive_flips_before"])
    for place, name in enumerate(order, start=1):
        names = {"student": cfg.student.name, "teacher": name, "method": "rank"}
        where = {"dataset": cfg.dataset.name, "fraction": cfg.dataset.fraction, "split": cfg.split}
        yield Row(cell={**names, **where}, metrics={"rank": float(place), **scores[name]})


def score_candidate(student: Predictions, teacher: Predictions) -> dict[str, float]:
    """What a teacher could add to a student, percent: flips, accuracies, and how many samples it would teach."""
    labels = student.labels.numpy()
    classes = {role: p.logits.argmax(1).numpy() for role, p in (("student", student), ("teacher", teacher))}
    accuracy = {role: percent(np.equal(predicted, labels)) for role, predicted in classes.items()}
    candidates = [student.logits, teacher.logits]
    winners = {suffix: most_confident(candidates, given) for suffix, given in (("", student.labels), ("_u", None))}
    ensemble = select_logits(candidates, winners["_u"]).argmax(1).numpy()
    flips = complementary_knowledge(classes["student"], classes["teacher"], labels)
    return {
        **{f"{name}_before": value for name, value in flips.items()},
        "accuracy_before": accuracy["student"],
        "accuracy_teacher": accuracy["teacher"],
        "accuracy_gap": accuracy["teacher"] - accuracy["student"],
        "ensemble_accuracy": percent(np.equal(ensemble, labels)),
        **{f"to_teacher{name}": percent((winner == 1).numpy()) for name, winner in winners.items()},
    }
