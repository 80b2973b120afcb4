"""Transfer from one trained network to another, or a ranking of candidates for the teacher."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import numpy as np

from recombine import data as datasets
from recombine.core.errors import ConfigError
from recombine.core.types import Row
from recombine.engine.class_predictions import ClassPredictions
from recombine.models import Model
from recombine.run.config import accepts
from recombine.run.run import Run
from recombine.transfer import networks, ranking, training
from recombine.transfer.controls import run_controls
from recombine.transfer.metrics import transfer_metrics
from recombine.transfer.settings import TransferSettings, same_network
from recombine.transfer.training import TransferResult

if TYPE_CHECKING:
    from omegaconf import DictConfig

__all__ = ["HEADLINE", "OBJECTIVE", "SETTINGS", "cell", "curves", "routing", "run", "training_metrics", "variant"]

OBJECTIVE = "transfer_delta"
"""What a hyper-parameter search maximises."""

CURVES = ("accuracy_after", "transfer_delta", "knowledge_gain", "knowledge_loss")
"""What is logged of validation images at each evaluation and of test images at the end."""

HEADLINE = (
    "transfer_delta",
    "gain_over_xe",
    "gain_over_self_dist",
    "accuracy_before",
    "accuracy_after",
    "accuracy_teacher",
    "transfer_rate_strict",
    "knowledge_gain",
    "knowledge_loss",
    "rank",
    "steps",
)
"""What a person sees of a row first."""

SETTINGS = TransferSettings
"""The class that declares the config."""


def cell(cfg: DictConfig) -> dict[str, Any]:
    """What identifies the row, known before anything is built."""
    names = {"student": cfg.student.name, "teacher": cfg.teacher.name, "method": cfg.method.get("name")}
    if cfg.candidates is not None:
        names = {"student": cfg.student.name, "method": "rank"}
    split = "val" if cfg.candidates is not None else cfg.split or "none"
    where = {"dataset": datasets.label_for(cfg), "fraction": cfg.dataset.fraction, "split": split}
    return names | variant(cfg) | where


def variant(cfg: DictConfig) -> dict[str, str]:
    """Which form of the method it is, where it is not the standard one: method=paper/xekl says paper."""
    return {"variant": cfg.variant} if cfg.get("variant") else {}


def run(cfg: DictConfig, run: Run) -> Iterator[Row]:
    """Train the student, then measure all networks on the test images, once; save the student, yield its row."""
    data = datasets.open_data_for(cfg, run)
    try:
        if cfg.split is not None:
            data.indices(cfg.split)  # a part that cannot be had is told before the training
        student = networks.open_network(cfg, run, data, cfg.student)
        if cfg.candidates is not None:
            yield from ranking.rank_candidates(cfg, run, data, student)
            return
        teacher = networks.open_teacher(cfg, run, data, cfg.teacher)
        if teacher.digest() == student.digest():
            raise ConfigError(same_network(cfg.student.name, cfg.teacher.name))
        if cfg.teacher_preprocessing == "student":
            teacher = networks.match_preprocessing(teacher, student)
        initial = {"student": deepcopy(student), "teacher": deepcopy(teacher)}
        val = training.predict_split(cfg, run, data, "val", initial)
        training.show_networks(run, initial, val)
        if trains(cfg):
            trained = training.train(cfg, run, data, student, [teacher], val)
            controls = run_controls(cfg, run, data, initial["student"], [initial["teacher"]])
            row = _row(cfg, run, data, initial, student, trained, controls)
            row.metrics.update(_partner_metrics(cfg, run, data, teacher, row, trained))
            if run.main:
                _save(cfg, run, data, student, teacher, row, trained)
        else:
            row = _row(cfg, run, data, initial, None, None, {})
    finally:
        data.close()
    yield row


def trains(cfg: DictConfig) -> bool:
    """Whether the method learns from another network, as all but `ensemble` do."""
    return any(accepts(cfg.method, part) for part in ("teachers", "initial", "partner"))


def _row(
    cfg: DictConfig,
    run: Run,
    data: datasets.Data,
    initial: Mapping[str, Model],
    student: Model | None,
    trained: TransferResult | None,
    controls: Mapping[str, ClassPredictions],
) -> Row:
    """What the test images say, if there are some; without a trained student, the more confident network predicts."""
    found = training.predict_split(cfg, run, data, cfg.split, initial)
    after = training.predict_split(cfg, run, data, cfg.split, {"after": student} if student else {}, keep=False)
    right = {role: predictions.right for role, predictions in (found | after).items()}
    if found and student is None:
        surer = (found["teacher"].confidence > found["student"].confidence).numpy()
        right["after"] = np.where(surer, right["teacher"], right["student"])
    metrics: dict[str, float] = {}
    series: dict[str, list] = {}
    if found:
        metrics, series = transfer_metrics(
            right["student"],
            right["after"],
            right["teacher"],
            found["student"].labels.numpy(),
            data.classes,
            controls={name: predictions.right for name, predictions in controls.items()},
            legacy=cfg.legacy_class_count,
        )
        run.tracker.log({f"test/{name}": metrics[name] for name in CURVES}, step=trained.fit.steps if trained else 0)
    if trained is not None:
        metrics |= training_metrics(initial["student"], trained)
        series |= curves(trained.fit.history)
    return Row(cell=cell(cfg), metrics=metrics, series=series)


def training_metrics(student: Model, trained: TransferResult) -> dict[str, float]:
    """Metrics of a training beside its result; the speed is in the row's provenance."""
    epochs = trained.fit.history
    metrics = routing(epochs) | {"parameters": sum(p.numel() for p in student.parameters())}
    val = [e["val/accuracy_after"] for e in epochs if "val/accuracy_after" in e]
    metrics |= {"val_accuracy_after": val[-1], "val_accuracy_best": max(val)} if val else {}
    return metrics | {"steps": trained.fit.steps}


def routing(epochs: list[dict[str, float]]) -> dict[str, float]:
    """Training samples that went to a teacher in the last epoch, percent of all and of the flips."""
    last = next((e for e in reversed(epochs) if "train/to_teacher" in e), None)
    if last is None:
        return {}
    rates = {"to_teacher": last["train/to_teacher"]}
    for sign in ("positive", "negative"):
        if last.get(f"train/{sign}_flips"):
            rates[f"{sign}_to_teacher"] = 100 * last[f"train/{sign}_to_teacher"] / last[f"train/{sign}_flips"]
    return rates


def curves(epochs: list[dict[str, float]]) -> dict[str, list]:
    """Metrics by epoch, on validation images, for plots."""
    names = {"train_loss": "train/loss"} | {name: f"val/{name}" for name in CURVES}
    return {"epoch": [e["epoch"] for e in epochs]} | {k: [e.get(v) for e in epochs] for k, v in names.items()}


def _partner_metrics(
    cfg: DictConfig, run: Run, data: datasets.Data, teacher: Model, row: Row, trained: TransferResult
) -> dict[str, float]:
    """Where the teacher trains too: its accuracy afterwards."""
    if not hasattr(trained.method, "partner") or "accuracy_teacher" not in row.metrics:
        return {}
    after = training.predict_split(cfg, run, data, cfg.split, {"": teacher}, keep=False)
    now = training.accuracy(after[""])
    return {"accuracy_teacher_after": now, "transfer_delta_teacher": now - row.metrics["accuracy_teacher"]}


def _save(
    cfg: DictConfig, run: Run, data: datasets.Data, student: Model, teacher: Model, row: Row, trained: TransferResult
) -> None:
    origin = {"student": student.tag, "teacher": teacher.tag, "method": cfg.method.name}
    card = {**data.card(), **origin, "metrics": row.metrics}
    run.note_file(networks.save_network(student, run.dir / "student.safetensors", card, cfg))
    if hasattr(trained.method, "partner"):
        card["metrics"] = {"accuracy_after": row.metrics.get("accuracy_teacher_after")}
        run.note_file(networks.save_network(teacher, run.dir / "teacher.safetensors", card, cfg))
