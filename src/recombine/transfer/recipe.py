"""Transfer from one trained network to another (sections 3, 4 and 6), or a ranking of candidates for the teacher."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from recombine import data as datasets
from recombine.core.errors import ConfigError
from recombine.core.types import Row
from recombine.engine.evaluate import Predictions, predict
from recombine.models import Model
from recombine.run.config import accepts, plain
from recombine.run.run import Run
from recombine.transfer import networks, ranking, training
from recombine.transfer.assignment import most_confident, select
from recombine.transfer.checks import method_problems, network_problems, option_problems, same
from recombine.transfer.metrics import transfer_measures
from recombine.transfer.settings import TransferSettings
from recombine.transfer.training import TransferResult

if TYPE_CHECKING:
    from omegaconf import DictConfig

__all__ = ["OBJECTIVE", "cell", "check", "curves", "routing", "run", "training_measures", "variant"]

OBJECTIVE = "transfer_delta"
"""What a hyper-parameter search maximises."""


SETTINGS = TransferSettings
"""The class that declares the config."""


def check(cfg: DictConfig) -> list[str]:
    """Problems of data, networks, their combination and the options, without loading any."""
    problems = option_problems(cfg) + method_problems(cfg)
    if cfg.candidates is not None:
        return problems + ranking.check(cfg)
    problems += network_problems(cfg, {"student": cfg.student, "teacher": cfg.teacher})
    if plain(cfg.student) == plain(cfg.teacher):
        problems.append(same(cfg.student.name, cfg.teacher.name))
    return problems


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
    """Measure both networks, train the student, measure it again, keep it, yield its row."""
    data = datasets.open_data_for(cfg, run)
    try:
        student = networks.open_network(cfg, run, data, cfg.student)
        if cfg.candidates is not None:
            yield from ranking.rank(cfg, run, data, student)
            return
        teacher = networks.open_teacher(cfg, run, data, cfg.teacher)
        if teacher.digest() == student.digest():
            raise ConfigError(same(cfg.student.name, cfg.teacher.name))
        if cfg.teacher_preprocessing == "student":
            teacher = networks.as_seen_by_student(teacher, student)
        said = training.predictions(cfg, run, data, {"student": student, "teacher": teacher})
        if trains(cfg):
            trained = training.train(cfg, run, data, student, [teacher], said["student"], said["teacher"])
            row = _row(cfg, said, trained.after, data.classes, trained)
            row.metrics.update(training_measures(student, trained))
            row.metrics.update(_partner(cfg, run, data, teacher, said["teacher"], trained))
            if run.main:
                _keep(cfg, run, student, teacher, row, trained)
        else:
            row = _row(cfg, said, _ensemble(said), data.classes, None)
    finally:
        data.close()
    yield row


def trains(cfg: DictConfig) -> bool:
    """Whether the method learns from another network, as all but `ensemble` do."""
    return any(accepts(cfg.method, part) for part in ("teachers", "initial", "partner"))


def _ensemble(said: dict[str, Predictions]) -> Predictions:
    """The prediction of whichever network is more confident, without any training (section 3.6)."""
    candidates = [said["student"].logits, said["teacher"].logits]
    return said["student"]._replace(logits=select(candidates, most_confident(candidates)))


def _row(
    cfg: DictConfig, said: dict[str, Predictions], after: Predictions, classes: int, trained: TransferResult | None
) -> Row:
    before, teacher = (said[role].logits.argmax(1).numpy() for role in ("student", "teacher"))
    labels = after.labels.numpy()
    metrics, series = transfer_measures(
        before, after.logits.argmax(1).numpy(), teacher, labels, classes, legacy=cfg.legacy_class_count
    )
    if trained is not None:
        series |= curves(trained.fit.history)
    return Row(cell=cell(cfg), metrics=metrics, series=series)


def training_measures(student: Model, trained: TransferResult) -> dict[str, float]:
    """What a training tells beside its result; the speed is in the row's provenance."""
    epochs = trained.fit.history
    best = max(e["val/accuracy_after"] for e in epochs if "val/accuracy_after" in e)
    return routing(epochs) | {"accuracy_best": best, "parameters": sum(p.numel() for p in student.parameters())}


def routing(epochs: list[dict[str, float]]) -> dict[str, float]:
    """Share of training samples that went to a teacher in the last epoch, of all and of the flips, percent."""
    last = next((e for e in reversed(epochs) if "train/to_teacher" in e), None)
    if last is None:
        return {}
    shares = {"to_teacher": last["train/to_teacher"]}
    for sign in ("positive", "negative"):
        if last.get(f"train/{sign}_flips"):
            shares[f"{sign}_to_teacher"] = 100 * last[f"train/{sign}_to_teacher"] / last[f"train/{sign}_flips"]
    return shares


def curves(epochs: list[dict[str, float]]) -> dict[str, list]:
    """Numbers by epoch, for plots."""
    names = {"train_loss": "train/loss"} | {
        name: f"val/{name}" for name in ("accuracy_after", "transfer_delta", "knowledge_gain", "knowledge_loss")
    }
    return {"epoch": [e["epoch"] for e in epochs]} | {k: [e.get(v) for e in epochs] for k, v in names.items()}


def _partner(
    cfg: DictConfig, run: Run, data: datasets.Data, teacher: Model, before: Predictions, trained: TransferResult
) -> dict[str, float]:
    """Where the teacher trains too: what became of it."""
    if not hasattr(trained.method, "partner"):
        return {}
    after = predict(teacher, training.eval_loader(cfg, data, teacher.canvas), precision=cfg.engine.precision)
    now = training.accuracy(after)
    return {"accuracy_teacher_after": now, "transfer_delta_teacher": now - training.accuracy(before)}


def _keep(cfg: DictConfig, run: Run, student: Model, teacher: Model, row: Row, trained: TransferResult) -> None:
    made = {"student": student.tag, "teacher": teacher.tag, "method": cfg.method.name, "data": cfg.dataset.name}
    card = {**made, "metrics": row.metrics}
    files = [networks.keep(student, run.dir / "student.safetensors", card, cfg)]
    if hasattr(trained.method, "partner"):
        card["metrics"] = {"accuracy_after": row.metrics["accuracy_teacher_after"]}
        files.append(networks.keep(teacher, run.dir / "teacher.safetensors", card, cfg))
    run.stats["files"] = files
