"""Rows of a patch run: which cell was measured, accuracies of base and tasks, and their means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recombine import data as datasets
from recombine.core.types import Row
from recombine.models import Model
from recombine.models.model import find_head
from recombine.patch.method_names import regularizer_names, row_names
from recombine.patch.metrics import harmonic_mean, mean, pooled
from recombine.patch.tasks import Task

if TYPE_CHECKING:
    from omegaconf import DictConfig

__all__ = ["TaskResult", "body_parameters", "cell", "joined", "joint_row", "row"]


@dataclass
class TaskResult:
    """The outcome of learning tasks: accuracies in percent, counts for the row, curves for its plots."""

    base: float
    """Accuracy of the base afterwards."""
    accuracies: dict[str, float]
    """By task."""
    counts: dict[str, float] = field(default_factory=dict)
    series: dict[str, list] = field(default_factory=dict)


def cell(cfg: DictConfig) -> dict[str, Any]:
    """The names of what is measured, known before anything is built."""
    names = row_names(cfg.method) | regularizer_names(cfg)
    start = {"start": Path(cfg.patch_weights).stem} if cfg.patch_weights else {}
    return {"model": cfg.model.name, "dataset": datasets.label_for(cfg), **names, "protocol": cfg.protocol, **start}


def row(
    cfg: DictConfig,
    names: dict[str, str],
    before: float,
    result: TaskResult,
    cost: Mapping[str, float],
    tasks: Sequence[float] = (),
) -> Row:
    """A row of one of the patching protocols; means are over the base and `tasks`, by default each task's accuracy.

    `cost`: steps and seconds of its training.
    """
    tasks = list(tasks or result.accuracies.values())
    metrics = {"accuracy_base_before": before, "accuracy_base_after": result.base}
    metrics |= {f"accuracy_{name}": value for name, value in result.accuracies.items()}
    metrics |= {"accuracy_patched": mean(tasks), "mean": mean([result.base, *tasks])}
    metrics |= {"harmonic_mean": harmonic_mean([result.base, *tasks]), **result.counts, **cost}
    return Row({**cell(cfg), **names}, metrics, result.series)


def joint_row(
    cfg: DictConfig, tasks: Sequence[Task], before: float, result: TaskResult, cost: Mapping[str, float]
) -> Row:
    """The row of tasks trained together, which count as one: top-1 on the concatenated test sets."""
    sizes = [len(task.data.indices("test")) for task in tasks]
    together = pooled(list(result.accuracies.values()), sizes)
    return row(cfg, {"tasks": joined(tasks)}, before, result, cost, [together])


def joined(tasks: Sequence[Task]) -> str:
    """The tasks of a row that has several."""
    return "-".join(task.name for task in tasks)


def body_parameters(model: Model) -> float:
    """All parameters of a network but its classifier's."""
    head = model.net.get_submodule(find_head(model.net, model.classes))
    return float(sum(p.numel() for p in model.net.parameters()) - sum(p.numel() for p in head.parameters()))
