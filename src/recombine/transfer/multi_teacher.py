"""Transfer from several teachers: one after the other, all at once, or as a soup of single students (section 8)."""

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
from recombine.run.config import plain
from recombine.run.run import Run
from recombine.transfer import networks, training
from recombine.transfer.checks import list_problems, method_problems, name_of, network_problems, option_problems, same
from recombine.transfer.metrics import change, transfer_measures
from recombine.transfer.recipe import curves, training_measures, variant
from recombine.transfer.settings import MultiTeacherSettings
from recombine.transfer.training import TransferResult

if TYPE_CHECKING:
    from omegaconf import DictConfig

__all__ = ["OBJECTIVE", "cell", "check", "in_order", "run", "soup"]

OBJECTIVE = "transfer_delta"
"""What a hyper-parameter search maximises."""
ORDERS = ("ascending", "descending", "given")
COMBINES = ("sequential", "parallel", "soup")


SETTINGS = MultiTeacherSettings
"""The class that declares the config."""


def check(cfg: DictConfig) -> list[str]:
    """Problems of data, networks, their combination and the options, without loading any."""
    problems = option_problems(cfg)
    for key, known in (("combine", COMBINES), ("order", ORDERS)):
        if cfg[key] not in known:
            problems.append(f"{key}={cfg[key]}: one of {', '.join(known)} is needed")
    if found := list_problems("teachers", cfg.teachers, 2):
        return problems + method_problems(cfg, frozen=True) + found
    problems += method_problems(cfg, len(cfg.teachers) if cfg.combine == "parallel" else 1, frozen=True)
    names = [name_of(node) for node in cfg.teachers]
    problems += [same(cfg.student.name, name_of(t)) for t in cfg.teachers if t == cfg.student.name]
    nodes = {"student": cfg.student, **dict(zip(names, plain(cfg.teachers), strict=True))}
    return problems + network_problems(cfg, nodes)


def cell(cfg: DictConfig) -> dict[str, Any]:
    """The names of what is measured, known before anything is built."""
    known = not list_problems("teachers", cfg.teachers, 1)  # a refused config has a cell too
    teachers = "+".join(map(name_of, cfg.teachers)) if known else str(cfg.teachers)
    names = {"student": cfg.student.name, "teachers": teachers}
    combined = {
        "method": cfg.method.get("name"),
        "combine": cfg.combine,
        "order": cfg.order if cfg.combine == "sequential" else "none",
    }
    where = {"dataset": cfg.dataset.name, "fraction": cfg.dataset.fraction, "split": cfg.split}
    return names | combined | variant(cfg) | where


def run(cfg: DictConfig, run: Run) -> Iterator[Row]:
    """Measure all networks, transfer from the teachers as `combine` says, yield a row per stage and one at the end."""
    data = datasets.open_data_for(cfg, run)
    try:
        student = networks.open_network(cfg, run, data, cfg.student)
        teachers = {name_of(node): networks.open_teacher(cfg, run, data, node) for node in cfg.teachers}
        for name, teacher in teachers.items():
            if teacher.digest() == student.digest():
                raise ConfigError(same(cfg.student.name, name))
            if cfg.teacher_preprocessing == "student":
                networks.as_seen_by_student(teacher, student)
        said = training.predictions(cfg, run, data, {"": student, **teachers})
        ways = {"sequential": _sequential, "parallel": _parallel, "soup": _soup}
        yield from ways[cfg.combine](cfg, run, data, student, teachers, said)
    finally:
        data.close()


Networks = dict[str, Model]
Said = dict[str, Predictions]


def _sequential(cfg: DictConfig, run: Run, data: Data, student: Model, teachers: Networks, said: Said) -> Iterator[Row]:
    """Each teacher in turn; a stage keeps what the stage before reached, with a fresh optimizer (A18, A19)."""
    before = said[""]
    order = in_order(cfg.order, said, list(teachers))
    for stage, name in enumerate(order, start=1):
        trained = training.train(
            cfg, run, data, student, [teachers[name]], before, said[name], name=f"stage{stage}", shared=stage == 1
        )
        row = _row(cfg, said, student, trained.after, name, trained)
        step = change(_classes(before), _classes(trained.after), before.labels.numpy())
        row.metrics.update({f"{key}_step": step[key] for key in ("transfer_delta", "knowledge_gain", "knowledge_loss")})
        row.cell["stage"] = "final" if stage == len(order) else str(stage)
        _keep(cfg, run, student, row, f"student_stage{stage}" if stage < len(order) else "student")
        before = trained.after
        yield row


def _parallel(cfg: DictConfig, run: Run, data: Data, student: Model, teachers: Networks, said: Said) -> Iterator[Row]:
    """All teachers at once: each sample from whichever network is most sure of it."""
    first = next(iter(teachers))
    trained = training.train(cfg, run, data, student, list(teachers.values()), said[""], said[first])
    row = _row(cfg, said, student, trained.after, first, trained)
    row.cell["stage"] = "final"
    _keep(cfg, run, student, row, "student")
    yield row


def _soup(cfg: DictConfig, run: Run, data: Data, student: Model, teachers: Networks, said: Said) -> Iterator[Row]:
    """The mean of the weights of students with one teacher each; the single students are rows too."""
    members, deltas = [], []
    for name, teacher in teachers.items():
        member = deepcopy(student)
        trained = training.train(cfg, run, data, member, [teacher], said[""], said[name], name=f"single/{_file(name)}")
        row = _row(cfg, said, member, trained.after, name, trained)
        row.cell.update(combine="single", stage=name)
        _keep(cfg, run, member, row, f"student_{_file(name)}")
        members.append(member.net.state_dict())
        deltas.append(row.metrics["transfer_delta"])
        yield row
    for name, statistic in (("mean", np.mean), ("min", np.min), ("max", np.max)):
        single = cell(cfg) | {"combine": f"single {name}", "stage": "final"}
        yield Row(cell=single, metrics={"transfer_delta": float(statistic(deltas))})
    student.net.load_state_dict(soup(members))
    loader = training.eval_loader(cfg, data, student.canvas)
    after = predict(student, loader, precision=cfg.engine.precision)
    row = _row(cfg, said, student, after, next(iter(teachers)), None)
    row.cell["stage"] = "final"
    _keep(cfg, run, student, row, "student")
    yield row


def in_order(order: str, said: Said, names: Sequence[str]) -> list[str]:
    """The teachers by measured accuracy, or as given."""
    if order == "given":
        return list(names)
    return sorted(names, key=lambda name: training.accuracy(said[name]) * (1 if order == "ascending" else -1))


def soup(states: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Uniform average of state dicts; integer entries keep their type and are those of the first."""
    return {
        key: torch.stack([state[key].double() for state in states]).mean(0).to(value.dtype)
        if value.is_floating_point()
        else value.clone()
        for key, value in states[0].items()
    }


def _row(
    cfg: DictConfig, said: Said, student: Model, after: Predictions, teacher: str, trained: TransferResult | None
) -> Row:
    """Measures relative to the original student; flips are those of `teacher`."""
    predicted = [_classes(p) for p in (said[""], after, said[teacher])]
    metrics, series = transfer_measures(
        *predicted, after.labels.numpy(), student.classes, legacy=cfg.legacy_class_count
    )
    if trained is not None:
        metrics |= training_measures(student, trained)
        series |= curves(trained.fit.history)
    return Row(cell=cell(cfg), metrics=metrics, series=series)


def _keep(cfg: DictConfig, run: Run, student: Model, row: Row, file: str) -> None:
    if run.main:
        made = {"student": student.tag, "teachers": row.cell["teachers"], "combine": row.cell["combine"]}
        card = {**made, "method": cfg.method.name, "data": cfg.dataset.name, "metrics": row.metrics}
        run.stats.setdefault("files", []).append(networks.keep(student, run.dir / f"{file}.safetensors", card, cfg))


def _classes(predictions: Predictions) -> np.ndarray:
    return predictions.logits.argmax(1).numpy()


def _file(name: str) -> str:
    """A network's name as part of a file name."""
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in name).lstrip("-.")
