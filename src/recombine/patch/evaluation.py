"""Accuracies of the base and of tasks, in percent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from recombine import models as zoo
from recombine.core.types import Loader
from recombine.data.mixed import LabelOffsetLoader
from recombine.engine.engine import Engine
from recombine.engine.evaluate import predict
from recombine.engine.metrics import Accuracy
from recombine.models import Model
from recombine.patch.metrics import mean
from recombine.patch.tasks import Task, label_offsets
from recombine.run.console import show

__all__ = ["accuracy", "base_accuracy", "evaluate_base", "held_out", "held_out_each", "measure_accuracy"]


def measure_accuracy(engine: Engine, net: nn.Module, loader: Loader) -> float:
    """Top-1 accuracy on the images of a loader."""
    return engine.evaluator(loader, {"accuracy": Accuracy()})(net)["accuracy"]


def accuracy(engine: Engine, net: nn.Module, task: Task, split: str = "test", offset: int = 0) -> float:
    """Top-1 accuracy on a split of a task, whose labels start at `offset` in a label space of several tasks."""
    return measure_accuracy(engine, net, LabelOffsetLoader(task.eval_loader(split), offset))


def held_out(engine: Engine, net: nn.Module, tasks: Sequence[Task]) -> dict[str, float]:
    """Mean top-1 accuracy on the training images that the tasks hold out (`task.val_fraction`); {} if none does."""
    offsets = zip(tasks, label_offsets(tasks), strict=True)
    found = [accuracy(engine, net, task, "val", offset) for task, offset in offsets if task.data.settings.val_fraction]
    return {"accuracy_val": mean(found)} if found else {}


def held_out_each(engine: Engine, networks: Mapping[str, nn.Module], tasks: Sequence[Task]) -> dict[str, float]:
    """The same of tasks with a network each, by the task's name."""
    found = [held_out(engine, networks[task.name], [task]) for task in tasks]
    return {"accuracy_val": mean([one["accuracy_val"] for one in found])} if all(found) else {}


def base_accuracy(engine: Engine, base: Task, model: Model) -> float:
    """Top-1 accuracy of `model` on the base's test images; predictions of the base itself are kept and used again."""
    cache = engine.run.cache if model is base.model else None  # other weights do not come again
    predictions = predict(model, base.eval_loader("test"), cache, precision=engine.cfg.eval_precision)
    return float((predictions.logits.argmax(1) == predictions.labels).double().mean() * 100)


def evaluate_base(engine: Engine, base: Task) -> float:
    """Top-1 accuracy of the base before training; shows the network."""
    found = base_accuracy(engine, base, base.model)
    if engine.run.main:
        show(zoo.describe([base.model], {base.model.name: found}))
    return found
