"""Transfer from one trained network to another, or a ranking of candidates for the teacher."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from recombine import data as datasets
from recombine.core.errors import ConfigError
from recombine.core.types import Row
from recombine.engine.evaluate import Predictions, predict
from recombine.models import Model
from recombine.run.config import accepts
from recombine.run.run import Run
from recombine.transfer import networks, ranking, training
from recombine.transfer.metrics import transfer_metrics
from recombine.transfer.sample_selection import most_confident, select_logits
from recombine.transfer.settings import TransferSettings, same_network
from recombine.transfer.training import TransferResult

if TYPE_CHECKING:
    from omegaconf import DictConfig

__all__ = ["OBJECTIVE", "SETTINGS", "cell", "curves", "routing", "run", "training_metrics", "variant"]

OBJECTIVE = "transfer_delta"
"""What a hyper-parameter search maximises."""

SETTINGS = TransferSettings
"""The class that declares the config."""


def cell(cfg: DictConfig) -> dict[str, Any]:
    """The names of what is measured, known before anything is built."""
    names = {"student": cfg.student.name, "teacher": cfg.teacher.name, "method": cfg.method.get("name")}
    if cfg.candidates is not None:
        names = {"student": cfg.student.name, "method": "rank"}
    where = {"dataset": cfg.dataset.name, "fraction": cfg.dataset.fraction, "split": cfg.split}
    return names | variant(cfg) | where


def variant(cfg: DictConfig) -> dict[str, str]:
    """Which form of the method it is, where it is not the standard one: method=paper/xekl says paper."""
    return {"variant": cfg.variant} if cfg.get("variant") else {}


def run(cfg: DictConfig, run: Run) -> Iterator[Row]:
    """Evaluate both networks, train the student, evaluate and save it, yield its row."""
    data = datasets.open_data_for(cfg, run)
    try:
        student = networks.open_network(cfg, run, data, cfg.student)
        if cfg.candidates is not None:
            yield from ranking.rank_candidates(cfg, run, data, student)
            return
        teacher = networks.open_teacher(cfg, run, data, cfg.teacher)
        if teacher.digest() == student.digest():
            raise ConfigError(same_network(cfg.student.name, cfg.teacher.name))
        if cfg.teacher_preprocessing == "student":
            teacher = networks.match_preprocessing(teacher, student)
        predictions = training.predict_split(cfg, run, data, {"student": student, "teacher": teacher})
        if trains(cfg):
            before = predictions["student"], predictions["teacher"]
            trained = training.train(cfg, run, data, student, [teacher], *before)
            row = _row(cfg, predictions, trained.after, data.classes, trained)
            row.metrics.update(training_metrics(student, trained))
            row.metrics.update(_partner_metrics(cfg, run, data, teacher, predictions["teacher"], trained))
            if run.main:
                _save(cfg, run, student, teacher, row, trained)
        else:
            row = _row(cfg, predictions, _ensemble(predictions), data.classes, None)
    finally:
        data.close()
    yield row


def trains(cfg: DictConfig) -> bool:
    """Whether the method learns from another network, as all but `ensemble` do."""
    return any(accepts(cfg.method, part) for part in ("teachers", "initial", "partner"))


def _ensemble(predictions: dict[str, Predictions]) -> Predictions:
    """The prediction of whichever network is more confident, without any training."""
    candidates = [predictions["student"].logits, predictions["teacher"].logits]
    return predictions["student"]._replace(logits=select_logits(candidates, most_confident(candidates)))


def _row(
    cfg: DictConfig,
    predictions: dict[str, Predictions],
    after: Predictions,
    classes: int,
    trained: TransferResult | None,
) -> Row:
    before, teacher = (predictions[role].logits.argmax(1).numpy() for role in ("student", "teacher"))
    labels = after.labels.numpy()
    metrics, series = transfer_metrics(
        before, after.logits.argmax(1).numpy(), teacher, labels, classes, legacy=cfg.legacy_class_count
    )
    if trained is not None:
        series |= curves(trained.fit.history)
    return Row(cell=cell(cfg), metrics=metrics, series=series)


def training_metrics(student: Model, trained: TransferResult) -> dict[str, float]:
    """Metrics of a training beside its result; the speed is in the row's provenance."""
    epochs = trained.fit.history
    best = max(e["val/accuracy_after"] for e in epochs if "val/accuracy_after" in e)
    return routing(epochs) | {"accuracy_best": best, "parameters": sum(p.numel() for p in student.parameters())}


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
    """Metrics by epoch, for plots."""
    names = {"train_loss": "train/loss"} | {
        name: f"val/{name}" for name in ("accuracy_after", "transfer_delta", "knowledge_gain", "knowledge_loss")
    }
    return {"epoch": [e["epoch"] for e in epochs]} | {k: [e.get(v) for e in epochs] for k, v in names.items()}


def _partner_metrics(
    cfg: DictConfig, run: Run, data: datasets.Data, teacher: Model, before: Predictions, trained: TransferResult
) -> dict[str, float]:
    """Where the teacher trains too: its accuracy afterwards."""
    if not hasattr(trained.method, "partner"):
        return {}
    after = predict(teacher, training.eval_loader(cfg, data, teacher.canvas), precision=cfg.engine.precision)
    now = training.accuracy(after)
    return {"accuracy_teacher_after": now, "transfer_delta_teacher": now - training.accuracy(before)}


def _save(cfg: DictConfig, run: Run, student: Model, teacher: Model, row: Row, trained: TransferResult) -> None:
    origin = {"student": student.tag, "teacher": teacher.tag, "method": cfg.method.name, "data": cfg.dataset.name}
    card = {**origin, "metrics": row.metrics}
    files = [networks.save_network(student, run.dir / "student.safetensors", card, cfg)]
    if hasattr(trained.method, "partner"):
        card["metrics"] = {"accuracy_after": row.metrics["accuracy_teacher_after"]}
        files.append(networks.save_network(teacher, run.dir / "teacher.safetensors", card, cfg))
    run.stats["files"] = files
