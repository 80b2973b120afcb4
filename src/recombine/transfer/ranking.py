"""Which teacher should I use? Candidates ranked by what they know beyond the student, before any training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from recombine import data as datasets
from recombine.core.errors import ConfigError
from recombine.core.types import Row
from recombine.data import Data
from recombine.engine.class_predictions import ClassPredictions
from recombine.models import Model
from recombine.models.settings import name_of
from recombine.run.run import Run
from recombine.transfer import networks, training
from recombine.transfer.metrics import complementary_knowledge, percent
from recombine.transfer.settings import same_network

if TYPE_CHECKING:
    from omegaconf import DictConfig

__all__ = ["rank_candidates", "score_candidate"]


def rank_candidates(cfg: DictConfig, run: Run, data: Data, student: Model) -> Iterator[Row]:
    """A row for each candidate, the one with most complementary knowledge of the validation images first."""
    teachers = {name_of(node): networks.open_teacher(cfg, run, data, node) for node in cfg.candidates}
    twins = [name for name, teacher in teachers.items() if teacher.digest() == student.digest()]
    if twins:
        raise ConfigError(same_network(cfg.student.name, twins[0]))
    training.require_val(cfg, data, "candidates are ranked")
    networks_by_role = {"": student, **teachers}
    predictions = training.predict_split(cfg, run, data, "val", networks_by_role)
    training.show_networks(run, networks_by_role, predictions)
    scores = {name: score_candidate(predictions[""], predictions[name]) for name in teachers}
    order = sorted(scores, key=lambda name: -scores[name]["positive_flips_before"])
    for place, name in enumerate(order, start=1):
        names = {"student": cfg.student.name, "teacher": name, "method": "rank"}
        where = {"dataset": datasets.label_for(cfg), "fraction": cfg.dataset.fraction, "split": "val"}
        yield Row(cell={**names, **where}, metrics={"rank": float(place), **scores[name]})


def score_candidate(student: ClassPredictions, teacher: ClassPredictions) -> dict[str, float]:
    """What a teacher could add to a student, percent: flips, accuracies, and how many samples it would teach."""
    surer = (teacher.confidence > student.confidence).numpy()
    surer_of_label = (teacher.label_probability > student.label_probability).numpy()
    accuracy = {"before": percent(student.right), "teacher": percent(teacher.right)}
    flips = complementary_knowledge(student.right, teacher.right)
    return {
        **{f"{name}_before": value for name, value in flips.items()},
        **{f"accuracy_{role}": value for role, value in accuracy.items()},
        "accuracy_gap": accuracy["teacher"] - accuracy["before"],
        "ensemble_accuracy": percent(np.where(surer, teacher.right, student.right)),
        "to_teacher": percent(surer_of_label),
        "to_teacher_u": percent(surer),
    }
