"""Transfer from several teachers: one after the other, all at once, or as a soup of single students."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from recombine import data as datasets
from recombine.core.errors import ConfigError
from recombine.core.types import Row
from recombine.data import Data
from recombine.engine.evaluate import Predictions, predict
from recombine.models import Model
from recombine.run.run import Run
from recombine.transfer import networks, training
from recombine.transfer.metrics import accuracy_changes, transfer_metrics
from recombine.transfer.recipe import curves, training_metrics, variant
from recombine.transfer.settings import MultiTeacherSettings, name_of, same_network
from recombine.transfer.training import TransferResult

if TYPE_CHECKING:
    from omegaconf import DictConfig

__all__ = ["OBJECTIVE", "SETTINGS", "average_weights", "cell", "run", "sort_teachers"]

Networks = dict[str, Model]
PredictionsByName = dict[str, Predictions]

OBJECTIVE = "transfer_delta"
"""What a hyper-parameter search maximises."""
SETTINGS = MultiTeacherSettings
"""The class that declares the config."""


def cell(cfg: DictConfig) -> dict[str, Any]:
    """The names of what is measured, known before anything is built."""
    names = {"student": cfg.student.name, "teachers": _join_names(cfg.teachers)}
    combined = {
        "method": cfg.method.get("name"),
        "combine": cfg.combine,
        "order": cfg.order if cfg.combine == "sequential" else "none",
    }
    where = {"dataset": cfg.dataset.name, "fraction": cfg.dataset.fraction, "split": cfg.split}
    return names | combined | variant(cfg) | where


def _join_names(teachers: Any) -> str:
    """As `resnet32+resnet56`, or as given where that is no list of networks: a refused config has a cell too."""
    try:
        return teachers if isinstance(teachers, str) else "+".join(map(name_of, teachers))
    except (TypeError, AttributeError):
        return str(teachers)


def run(cfg: DictConfig, run: Run) -> Iterator[Row]:
    """Evaluate all networks, transfer from the teachers as `combine` says, yield a row per stage and one at the end."""
    data = datasets.open_data_for(cfg, run)
    try:
        student = networks.open_network(cfg, run, data, cfg.student)
        teachers = {name_of(node): networks.open_teacher(cfg, run, data, node) for node in cfg.teachers}
        for name, teacher in teachers.items():
            if teacher.digest() == student.digest():
                raise ConfigError(same_network(cfg.student.name, name))
            if cfg.teacher_preprocessing == "student":
                networks.match_preprocessing(teacher, student)
        predictions = training.predict_split(cfg, run, data, {"": student, **teachers})
        train = {"sequential": _train_in_turn, "parallel": _train_at_once, "soup": _train_soup}[cfg.combine]
        yield from train(cfg, run, data, student, teachers, predictions)
    finally:
        data.close()


def _train_in_turn(
    cfg: DictConfig, run: Run, data: Data, student: Model, teachers: Networks, predictions: PredictionsByName
) -> Iterator[Row]:
    """Each teacher in turn, with a new optimizer; the initial student of a stage is what the stage before reached."""
    before = predictions[""]
    order = sort_teachers(cfg.order, predictions, list(teachers))
    for stage, name in enumerate(order, start=1):
        trained = training.train(
            cfg,
            run,
            data,
            student,
            [teachers[name]],
            before,
            predictions[name],
            name=f"stage{stage}",
            cache_initial=stage == 1,
        )
        row = _row(cfg, predictions, student, trained.after, name, trained)
        step = accuracy_changes(_classes(before), _classes(trained.after), before.labels.numpy())
        row.metrics.update({f"{key}_step": step[key] for key in ("transfer_delta", "knowledge_gain", "knowledge_loss")})
        row.cell["stage"] = "final" if stage == len(order) else str(stage)
        _save_student(cfg, run, student, row, f"student_stage{stage}" if stage < len(order) else "student")
        before = trained.after
        yield row


def _train_at_once(
    cfg: DictConfig, run: Run, data: Data, student: Model, teachers: Networks, predictions: PredictionsByName
) -> Iterator[Row]:
    """All teachers at once: each sample from whichever network is most confident."""
    first = next(iter(teachers))
    trained = training.train(cfg, run, data, student, list(teachers.values()), predictions[""], predictions[first])
    row = _row(cfg, predictions, student, trained.after, first, trained)
    row.cell["stage"] = "final"
    _save_student(cfg, run, student, row, "student")
    yield row


def _train_soup(
    cfg: DictConfig, run: Run, data: Data, student: Model, teachers: Networks, predictions: PredictionsByName
) -> Iterator[Row]:
    """The mean of the weights of students with one teacher each; the single students are rows too."""
    members, deltas = [], []
    for name, teacher in teachers.items():
        member = deepcopy(student)
        stage = f"single/{_file_name(name)}"
        trained = training.train(cfg, run, data, member, [teacher], predictions[""], predictions[name], name=stage)
        row = _row(cfg, predictions, member, trained.after, name, trained)
        row.cell.update(combine="single", stage=name)
        _save_student(cfg, run, member, row, f"student_{_file_name(name)}")
        members.append(member.net.state_dict())
        deltas.append(row.metrics["transfer_delta"])
        yield row
    for name, statistic in (("mean", np.mean), ("min", np.min), ("max", np.max)):
        single = cell(cfg) | {"combine": f"single {name}", "stage": "final"}
        yield Row(cell=single, metrics={"transfer_delta": float(statistic(deltas))})
    student.net.load_state_dict(average_weights(members))
    loader = training.eval_loader(cfg, data, student.canvas)
    after = predict(student, loader, precision=cfg.engine.precision)
    row = _row(cfg, predictions, student, after, next(iter(teachers)), None)
    row.cell["stage"] = "final"
    _save_student(cfg, run, student, row, "student")
    yield row


def sort_teachers(order: str, predictions: PredictionsByName, names: Sequence[str]) -> list[str]:
    """The teachers by accuracy, or as given."""
    if order == "given":
        return list(names)
    return sorted(names, key=lambda name: training.accuracy(predictions[name]) * (1 if order == "ascending" else -1))


def average_weights(states: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Uniform average of state dicts; integer entries keep their type and are those of the first."""
    return {
        key: torch.stack([state[key].double() for state in states]).mean(0).to(value.dtype)
        if value.is_floating_point()
        else value.clone()
        for key, value in states[0].items()
    }


def _row(
    cfg: DictConfig,
    predictions: PredictionsByName,
    student: Model,
    after: Predictions,
    teacher: str,
    trained: TransferResult | None,
) -> Row:
    """Metrics relative to the original student; flips are those of `teacher`."""
    metrics, series = transfer_metrics(
        _classes(predictions[""]),
        _classes(after),
        _classes(predictions[teacher]),
        after.labels.numpy(),
        student.classes,
        legacy=cfg.legacy_class_count,
    )
    if trained is not None:
        metrics |= training_metrics(student, trained)
        series |= curves(trained.fit.history)
    return Row(cell=cell(cfg), metrics=metrics, series=series)


def _save_student(cfg: DictConfig, run: Run, student: Model, row: Row, file: str) -> None:
    if run.main:
        origin = {"student": student.tag, "teachers": row.cell["teachers"], "combine": row.cell["combine"]}
        card = {**origin, "method": cfg.method.name, "data": cfg.dataset.name, "metrics": row.metrics}
        run.stats.setdefault("files", []).append(
            networks.save_network(student, run.dir / f"{file}.safetensors", card, cfg)
        )


def _classes(predictions: Predictions) -> np.ndarray:
    return predictions.logits.argmax(1).numpy()


def _file_name(name: str) -> str:
    """A network's name as it may stand in a file name."""
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in name).lstrip("-.")
