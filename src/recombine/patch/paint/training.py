"""Training with PAINT: fine-tune the whole network, then choose how far to go by held-out images."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

from recombine.models import Model
from recombine.patch.evaluation import accuracy, measure_accuracy
from recombine.patch.paint.interpolation import (
    backbone,
    choose_alpha,
    interpolate,
    load_backbone,
    recalibrate,
    with_backbone,
    with_new_head,
)
from recombine.patch.settings import Paint
from recombine.patch.tasks import Task, choice_loader
from recombine.patch.training import Trainer, initial_weights, join, task_loaders

__all__ = ["AlphaSearch", "Choice", "Tuned", "finetune"]

log = logging.getLogger(__name__)
Backbone = dict[str, Tensor]


class Tuned(NamedTuple):
    """A task with the network that has its classifier."""

    task: Task
    model: Model
    offset: int = 0
    """Where the classes of the task start among the outputs."""


class Choice(NamedTuple):
    """The outcome of a search."""

    backbone: Backbone
    alpha: float
    series: dict[str, list]
    """Held-out accuracies by alpha, for the row."""


def finetune(trainer: Trainer, base: Model, name: str, tasks: Sequence[Task], start: Backbone | None = None) -> Model:
    """Fine-tune a copy of the base, from the backbone `start` if given, with a new classifier for these tasks."""
    run = trainer.engine.run
    with initial_weights(run.seed, name):
        model = with_new_head(base, sum(task.classes for task in tasks)).to(run.device)
    if start is not None:
        load_backbone(model, start)
    trainer.fit(name, model, join(task_loaders(tasks, trainer.cfg.batch_size, run.world), tasks))
    return model


class AlphaSearch:
    """Chooses PAINT's interpolation weight between two backbones by held-out images of base and tasks."""

    def __init__(self, method: Paint, trainer: Trainer, base: Task) -> None:
        self.method, self.trainer, self.base = method, trainer, base
        fixed = method.select == "fixed"
        self.choice = None if fixed else choice_loader(base, trainer.cfg.choice_split, trainer.engine.run.seed)

    def choose(self, name: str, start: Backbone, tuned: Sequence[Tuned], *, joint: bool = False) -> Choice:
        """The backbone between `start` and that of the last network.

        `tuned`: every task so far. `joint`: the tasks were trained together and count as one set; else the last task is
        the one just trained.
        """
        tasks = [each.task for each in tuned]
        between = self._backbones(start, tuned[-1].model, tasks if joint else tasks[-1:])
        network, engine = with_backbone(self.base.model, start), self.trainer.engine

        def accuracies(alpha: float) -> list[float]:
            state = between(alpha)
            base = (
                measure_accuracy(engine, load_backbone(network, state), self.choice) if self.choice is not None else 0.0
            )
            models = [load_backbone(each.model, state) for each in tuned]
            return [base, *(accuracy(engine, m, t, "val", k) for m, (t, _, k) in zip(models, tuned, strict=True))]

        sizes = [len(task.data.indices("val")) for task in tasks] if joint and self.choice is not None else None
        alpha, curve = choose_alpha(self.method, accuracies, sizes)
        columns = ["base", *(task.name for task in tasks)]
        series: dict[str, list] = {"alpha": list(curve)} if curve else {}
        series |= {f"choice_{c}": [v[k] for v in curve.values()] for k, c in enumerate(columns) if curve}
        log.info("%s: alpha %.2f", name, alpha)
        return Choice(between(alpha), alpha, series)

    def _backbones(self, start: Backbone, tuned: Model, tasks: Sequence[Task]) -> Callable[[float], Backbone]:
        """The backbone between `start` (alpha = 0) and that of `tuned`, which was fine-tuned on `tasks`."""
        end, images = backbone(tuned), None
        if self.method.statistics == "recalibrated":
            world = self.trainer.engine.run.world
            images = join(task_loaders(tasks, self.trainer.cfg.batch_size, world, augment=False), tasks)

        def between(alpha: float) -> Backbone:
            state = interpolate(start, end, alpha)
            if images is not None and alpha > 0:
                recalibrate(load_backbone(tuned, state), images)
                state = backbone(tuned)
            return state

        return between
