"""Training of network and patch together: from random weights (scratch) or from trained ones (end_to_end)."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from recombine import models as zoo
from recombine.core.types import Row
from recombine.engine.metrics import Accuracy
from recombine.models import Model
from recombine.patch.evaluation import held_out
from recombine.patch.patched import TaskNetwork
from recombine.patch.rows import cell
from recombine.patch.settings import UNTRAINED
from recombine.patch.tasks import Task
from recombine.patch.training import PatchBuilder, Trainer, initial_weights
from recombine.run.config import build
from recombine.run.console import show

if TYPE_CHECKING:
    from omegaconf import DictConfig

__all__ = ["build_network", "count_parameters", "train_end_to_end", "train_network"]


def train_end_to_end(
    cfg: DictConfig, trainer: Trainer, method: Any, model: Model, tasks: Sequence[Task]
) -> Iterator[Row]:
    """A row for each task: network and patch, trained together, on its test images."""
    if trainer.engine.run.main:
        show(zoo.describe([model]))
    for task in tasks:
        network = build_network(cfg, trainer, method, model, task.name, task.classes)
        train_network(cfg, trainer, task.name, network, task)
        top = Accuracy((1, 5) if task.classes > 5 else (1,))
        metrics = trainer.engine.evaluator(task.eval_loader("test"), {"accuracy": top})(network)
        found = {f"accuracy_{task.name}": metrics["accuracy"], "accuracy_patched": metrics["accuracy"]}
        found |= {"top5": metrics["top5"]} if "top5" in metrics else {}
        found |= held_out(trainer.engine, network, [task])
        found["trainable_parameters"] = count_parameters(network)
        found["training_images"] = float(len(task.data.indices("train")))
        yield Row({**cell(cfg), "dataset": task.data.name, "task": task.name}, found | trainer.cost(task.name))


def build_network(cfg: DictConfig, trainer: Trainer, method: Any, like: Model, name: str, classes: int) -> TaskNetwork:
    """A copy of `like`, which trains, with a new patch; of an untrained network, one drawn anew for its classes."""
    run = trainer.engine.run
    if cfg.protocol in UNTRAINED:
        model = zoo.build({**cfg.model, "weights": None}, classes=classes, weights_root=cfg.weights_root, seed=run.seed)
    else:
        model = copy.deepcopy(like)
    return PatchBuilder(method, model.to(run.device).requires_grad_(True), run).build(name, classes, frozen=False)


def train_network(cfg: DictConfig, trainer: Trainer, name: str, network: TaskNetwork, task: Task) -> None:
    """Train network and patch on a task with the run's regularizer."""
    with initial_weights(trainer.engine.run.seed, f"{name} regularizer"):
        training = build(cfg.regularizer, net=network, base_lr_scale=cfg.base_lr_scale)
    training.to(trainer.engine.run.device).prepare(task.eval_loader("train"))
    trainer.fit_method(name, training, training.loader(task.train_loader(cfg.batch_size)))


def count_parameters(network: TaskNetwork) -> float:
    """Parameters of network and patch, the classifiers left out."""
    head = network.base.get_submodule(network.patch.head_name)
    counts = [sum(p.numel() for p in part.parameters()) for part in (network.base, head)]
    return float(counts[0] - counts[1] + network.patch.parameters_without_head())
