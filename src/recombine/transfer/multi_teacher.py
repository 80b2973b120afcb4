"""Transfer from several teachers: one after the other, all at once, or as a soup of single students."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from recombine import data as datasets
from recombine.core.errors import ConfigError
from recombine.core.types import Row
from recombine.data import Data
from recombine.engine.class_predictions import ClassPredictions
from recombine.models import Model
from recombine.models.settings import name_of
from recombine.run.run import Run
from recombine.transfer import networks, training
from recombine.transfer.controls import run_controls
from recombine.transfer.metrics import accuracy_changes, transfer_metrics
from recombine.transfer.recipe import CURVES, HEADLINE, curves, training_metrics, variant
from recombine.transfer.settings import MultiTeacherSettings, same_network
from recombine.transfer.training import TransferResult

if TYPE_CHECKING:
    from omegaconf import DictConfig

__all__ = ["HEADLINE", "OBJECTIVE", "SETTINGS", "average_weights", "cell", "run", "sort_teachers"]

Networks = dict[str, Model]
PredictionsByName = dict[str, ClassPredictions]


class Stage(NamedTuple):
    """A student that was trained, to be measured when all are."""

    teacher: str
    """The one whose flips its row tells."""
    student: Model
    trained: TransferResult | None
    cell: dict[str, str]
    """What its cell says of it."""
    file: str


OBJECTIVE = "transfer_delta"
"""What a hyper-parameter search maximises."""

SETTINGS = MultiTeacherSettings
"""The class that declares the config."""


def cell(cfg: DictConfig) -> dict[str, Any]:
    """What identifies the rows, known before anything is built."""
    names = {"student": cfg.student.name, "teachers": _join_names(cfg.teachers)}
    combined = {
        "method": cfg.method.get("name"),
        "combine": cfg.combine,
        "order": cfg.order if cfg.combine == "sequential" else "none",
    }
    where = {"dataset": datasets.label_for(cfg), "fraction": cfg.dataset.fraction, "split": cfg.split or "none"}
    return names | combined | variant(cfg) | where


def _join_names(teachers: Any) -> str:
    """As `resnet32+resnet56`, or as given where that is no list of networks: a refused config has a cell too."""
    try:
        return teachers if isinstance(teachers, str) else "+".join(map(name_of, teachers))
    except (TypeError, AttributeError):
        return str(teachers)


def run(cfg: DictConfig, run: Run) -> Iterator[Row]:
    """Transfer from the teachers as `combine` says, then measure all networks on the test images, once.

    Yields a row for each stage and one at the end.
    """
    data = datasets.open_data_for(cfg, run)
    try:
        if cfg.split is not None:
            data.indices(cfg.split)  # a part that cannot be had is told before the training
        student = networks.open_network(cfg, run, data, cfg.student)
        teachers = {name_of(node): networks.open_teacher(cfg, run, data, node) for node in cfg.teachers}
        for name, teacher in teachers.items():
            if teacher.digest() == student.digest():
                raise ConfigError(same_network(cfg.student.name, name))
            if cfg.teacher_preprocessing == "student":
                networks.match_preprocessing(teacher, student)
        if cfg.combine == "sequential" and cfg.order != "given":
            training.require_val(cfg, data, "teachers are ordered (but for order=given)")
        initial = deepcopy(student)
        val = training.predict_split(cfg, run, data, "val", {"": initial, **teachers})
        training.show_networks(run, {"": initial, **teachers}, val)
        train = {"sequential": _train_in_turn, "parallel": _train_at_once, "soup": _train_soup}[cfg.combine]
        stages = train(cfg, run, data, student, teachers, val)
        length = len(teachers) if cfg.combine == "sequential" else 1
        controls = run_controls(cfg, run, data, initial, list(teachers.values()), epochs=length)
        yield from _rows(cfg, run, data, {"": initial, **teachers}, stages, controls)
    finally:
        data.close()


def _train_in_turn(
    cfg: DictConfig, run: Run, data: Data, student: Model, teachers: Networks, val: PredictionsByName
) -> list[Stage]:
    """Each teacher in turn, with a new optimizer; the initial student of a stage is what the stage before reached."""
    before, stages = val.get(""), []
    order = sort_teachers(cfg.order, val, list(teachers))
    for number, name in enumerate(order, start=1):
        images = {"student": before, "teacher": val[name]} if before is not None else {}
        options: dict[str, Any] = {"name": f"stage{number}", "cache_initial": number == 1}
        trained = training.train(cfg, run, data, student, [teachers[name]], images, **options)
        last = number == len(order)
        place = {"stage": "final" if last else str(number)}
        file = "student" if last else f"student_stage{number}"
        stages.append(Stage(name, student if last else deepcopy(student), trained, place, file))
        before = trained.val
    return stages


def _train_at_once(
    cfg: DictConfig, run: Run, data: Data, student: Model, teachers: Networks, val: PredictionsByName
) -> list[Stage]:
    """All teachers at once: each sample from whichever network is most confident."""
    first = next(iter(teachers))
    images = {"student": val[""], "teacher": val[first]} if val else {}
    trained = training.train(cfg, run, data, student, list(teachers.values()), images)
    return [Stage(first, student, trained, {"stage": "final"}, "student")]


def _train_soup(
    cfg: DictConfig, run: Run, data: Data, student: Model, teachers: Networks, val: PredictionsByName
) -> list[Stage]:
    """The mean of the weights of students with one teacher each; the single students are rows too."""
    members = []
    for name, teacher in teachers.items():
        member = deepcopy(student)
        images = {"student": val[""], "teacher": val[name]} if val else {}
        trained = training.train(cfg, run, data, member, [teacher], images, name=f"single/{_file_name(name)}")
        place = {"combine": "single", "stage": name}
        members.append(Stage(name, member, trained, place, f"student_{_file_name(name)}"))
    student.net.load_state_dict(average_weights([each.student.net.state_dict() for each in members]))
    return [*members, Stage(next(iter(teachers)), student, None, {"stage": "final"}, "student")]


def _rows(
    cfg: DictConfig,
    run: Run,
    data: Data,
    initial: Networks,
    stages: Sequence[Stage],
    controls: Mapping[str, ClassPredictions],
) -> Iterator[Row]:
    """A row for each stage from the test images, if there are some; of a soup, statistics of its members too."""
    found = training.predict_split(cfg, run, data, cfg.split, initial)
    right = {name: each.right for name, each in found.items()}
    before, deltas = right.get(""), []
    for stage in stages:
        row = Row(cell=cell(cfg) | stage.cell)
        if before is not None:
            after = training.predict_split(cfg, run, data, cfg.split, {"": stage.student}, keep=False)[""].right
            metrics, series = transfer_metrics(
                right[""],
                after,
                right[stage.teacher],
                found[""].labels.numpy(),
                data.classes,
                controls={name: c.right for name, c in controls.items()} if stage is stages[-1] else {},
                legacy=cfg.legacy_class_count,
            )
            if cfg.combine == "sequential":
                step = accuracy_changes(before, after)
                metrics |= {f"{key}_step": step[key] for key in CURVES[1:]}
                before = after
            row.metrics.update(metrics)
            row.series.update(series)
        if stage.trained is not None:
            row.metrics.update(training_metrics(stage.student, stage.trained))
            row.series.update(curves(stage.trained.fit.history))
        if stage.cell.get("combine") == "single":
            deltas.append(row.metrics.get("transfer_delta", np.nan))
        elif deltas:
            yield from _statistics(cfg, deltas)
        _save_student(cfg, run, data, stage.student, row, stage.file)
        yield row


def _statistics(cfg: DictConfig, deltas: Sequence[float]) -> Iterator[Row]:
    """Mean, least and largest delta of students with one teacher each."""
    for name, statistic in (("mean", np.mean), ("min", np.min), ("max", np.max)):
        single = cell(cfg) | {"combine": f"single {name}", "stage": "final"}
        yield Row(cell=single, metrics={"transfer_delta": float(statistic(deltas))})


def sort_teachers(order: str, predictions: PredictionsByName, names: Sequence[str]) -> list[str]:
    """The teachers by accuracy on the validation images, or as given."""
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


def _save_student(cfg: DictConfig, run: Run, data: Data, student: Model, row: Row, file: str) -> None:
    if run.main:
        origin = {"student": student.tag, "teachers": row.cell["teachers"], "combine": row.cell["combine"]}
        card = {**data.card(), **origin, "method": cfg.method.name, "metrics": row.metrics}
        run.note_file(networks.save_network(student, run.dir / f"{file}.safetensors", card, cfg))


def _file_name(name: str) -> str:
    """A network's name as it may stand in a file name."""
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in name).lstrip("-.")
