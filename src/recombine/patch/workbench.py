"""What all protocols need: the base, its tasks, and how one of them is learnt and measured."""

from __future__ import annotations

import copy
import logging
import zlib
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from recombine import data as datasets
from recombine import models as zoo
from recombine.core.distributed import gather_by_index
from recombine.core.errors import ConfigError
from recombine.core.types import Loader
from recombine.data.mixed import LabelOffsetLoader, MixedLoader, shares
from recombine.engine.engine import Engine, Fit
from recombine.engine.evaluate import predict
from recombine.engine.metrics import Accuracy
from recombine.models import Model
from recombine.models.graph import traced
from recombine.patch import paint
from recombine.patch.patched import Patch, Patched
from recombine.patch.tasks import Task, label_offsets
from recombine.patch.training import CachedFeatureLoader, TaskTraining
from recombine.run.config import DictConfig, build
from recombine.run.console import show
from recombine.run.run import Run

__all__ = ["Workbench"]

log = logging.getLogger(__name__)
CHOICE_IMAGES = 5000


class Workbench:
    """One base network with its data, the tasks, and the method."""

    def __init__(self, cfg: DictConfig, run: Run, base: Model, base_data: datasets.Data, tasks: list[Task]) -> None:
        self.cfg, self.run, self.tasks = cfg, run, tasks
        self.base = base.to(run.device).eval().requires_grad_(False)
        self.engine = Engine(cfg.engine, run)
        self.method = build(cfg.method)
        self.traced = traced(base)
        if not isinstance(self.method, paint.Paint):
            with torch.device("meta"):
                self.method(self.traced, 1)  # what the network lacks is told before anything is measured
        self.base_task = Task(base_data.name, base_data, base, cfg.eval_batch_size)
        self.seconds: dict[str, float] = {}

    # ------------------------------------------------------------------------------------------- measuring

    def base_accuracy(self, model: Model) -> float:
        """Top-1 of `model` on the base's test images; the base itself is never run twice."""
        cache = self.run.cache if model is self.base else None  # mixed and fine-tuned weights do not come again
        predictions = predict(model, self.base_task.all_of("test"), cache, precision=self.engine.cfg.precision)
        return float((predictions.logits.argmax(1) == predictions.labels).double().mean() * 100)

    def measured_base(self) -> float:
        """Top-1 of the base as it is; shows what it is."""
        measured = self.base_accuracy(self.base)
        if self.run.main:
            show(zoo.describe([self.base], {self.base.name: measured}))
        return measured

    def accuracy(self, model: nn.Module, task: Task, split: str = "test", offset: int = 0) -> float:
        """Top-1 on a split of a task, in the joint label space if it starts at `offset`."""
        loader = LabelOffsetLoader(task.all_of(split), offset)
        return self.engine.evaluator(loader, {"accuracy": Accuracy()})(model)["accuracy"]

    @cached_property
    def choice(self) -> Loader:
        """The images of the base's data on which choices are made."""
        data, split = self.base_task.data, self.cfg.choice_split
        indices = data.indices(split)
        if len(indices) > CHOICE_IMAGES:
            indices = np.sort(np.random.default_rng(self.run.seed).choice(indices, CHOICE_IMAGES, replace=False))
        size = self.base.canvas
        return data.loader(split, self.cfg.eval_batch_size, train=False, indices=indices, size=size)

    # -------------------------------------------------------------------------------------------- learning

    def patch(self, name: str, classes: int, *, frozen: bool = True, model: Model | None = None) -> Patched:
        """A new patch of the method on the base (or on `model`), drawn from the run's seed and `name`."""
        model = model or self.base
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(zlib.crc32(f"{self.run.seed} {name}".encode()))
            patch: Patch = self.method(self.traced if model is self.base else traced(model), classes)
        return Patched(model, patch, frozen=frozen).to(self.run.device)

    def learn_patch(self, name: str, tasks: Sequence[Task]) -> Patched:
        """Train a patch for one task, or one for several with a common label space."""
        patched = self.patch(name, sum(task.classes for task in tasks))
        patched.patch.prepare(patched, partial(self.some_images, tasks), self.run.seed)
        self.fit(name, patched, self.train_loader(tasks, patched))
        return patched

    def learn_all(self, name: str, tasks: Sequence[Task], start: dict[str, Tensor] | None = None) -> Model:
        """Fine-tune a copy of the base, from the backbone `start` if given, with a new classifier."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(zlib.crc32(f"{self.run.seed} {name}".encode()))
            model = paint.tunable(self.base, sum(task.classes for task in tasks)).to(self.run.device)
        if start is not None:
            model.net.load_state_dict(start, strict=False)
        self.fit(name, model, self.train_loader(tasks))
        return model

    def fit(self, name: str, net: nn.Module, loader: Loader) -> Fit:
        """Train what trains in `net`."""
        cfg = self.cfg
        fit = self.engine.fit(TaskTraining(net), loader, build(cfg.optimizer), build(cfg.schedule), name=name)
        self.seconds[name] = fit.seconds
        return fit

    def fit_seconds(self, name: str | None = None) -> float:
        """Spent training: in the fit of that name, or in all of them."""
        return sum(self.seconds.values()) if name is None else self.seconds[name]

    def train_loader(self, tasks: Sequence[Task], patched: Patched | None = None, *, augment: bool = True) -> Loader:
        """Training batches of one task or of several together, as images or as kept prefix values."""
        sizes = [len(task.data.indices("train")) for task in tasks]
        batches = shares(sizes, self.cfg.batch_size, self.run.world) if len(tasks) > 1 else [self.cfg.batch_size]
        loaders: list[Loader] = [task.train(size, augment) for task, size in zip(tasks, batches, strict=True)]
        if patched is not None and self.keeps_prefix(loaders, sum(sizes), patched):
            precision = self.engine.cfg.precision
            loaders = [
                CachedFeatureLoader(loader, task.all_of("train"), patched, precision)
                for loader, task in zip(loaders, tasks, strict=True)
            ]
        if len(tasks) == 1:
            return loaders[0]
        moved = [
            LabelOffsetLoader(loader, offset) for loader, offset in zip(loaders, label_offsets(tasks), strict=True)
        ]
        return MixedLoader(moved, self.base.preprocess.fit)

    def keeps_prefix(self, loaders: Sequence[Any], samples: int, patched: Patched) -> bool:
        """Whether the values before the first patched place can and may be kept."""
        if self.run.world > 1 or any(loader.augment is not None for loader in loaders) or not patched.frozen:
            return False
        return patched.prefix_floats * samples * 4 <= self.cfg.feature_cache_gib * 2**30

    def some_images(self, tasks: Sequence[Task], count: int) -> Tensor:
        """Training images in random order at the base's size, at most `count`; of several tasks in turn."""
        images, turns = [], []
        for task in tasks:
            generator = np.random.default_rng(self.run.seed)
            indices = generator.permutation(task.data.indices("train"))[: count // len(tasks)]
            loader = task.data.loader("train", len(indices), train=False, indices=indices, size=self.base.canvas)
            with closing(loader.epoch(0)) as batches:
                mine = [(batch.index, batch.images) for batch in batches]
            # every process needs all of them; a loader gives each its share, in ascending order
            places, found = gather_by_index(*(torch.cat(column) for column in zip(*mine, strict=True)))
            images.append(self.base.preprocess.fit(found[torch.searchsorted(places, torch.from_numpy(indices))]))
            turns += range(len(indices))
        return torch.cat(images)[np.argsort(turns, kind="stable")].to(self.run.device)

    # ----------------------------------------------------------------------------------------------- PAINT

    def mix(
        self,
        start: dict[str, Tensor],
        tuned: Model,
        learnt: Sequence[tuple[Task, Model, int]],
        name: str,
        *,
        joint: bool = False,
    ) -> tuple[dict[str, Tensor], float, dict[str, list]]:
        """Choose PAINT's alpha between the backbone `start` and that of `tuned`; the mixed backbone and the curve.

        `learnt`: every task so far with the model that has its classifier, and its offset in the label space.
        `joint`: the tasks were learnt together and count as one; else the last is the one just learnt.
        """
        method: paint.Paint = self.method
        tasks = [task for task, *_ in learnt]
        mixed = self.mixer(start, tuned, tasks if joint else tasks[-1:])
        carrier = self.with_backbone(start)

        def accuracies(alpha: float) -> list[float]:
            state = mixed(alpha)
            carrier.net.load_state_dict(state, strict=False)
            base = self.engine.evaluator(self.choice, {"accuracy": Accuracy()})(carrier)["accuracy"]
            return [base, *(self.accuracy(self.carrying(m, state), t, "val", offset) for t, m, offset in learnt)]

        one_set = joint and method.select != "fixed"
        alpha, curve = method.choose(accuracies, [len(t.data.indices("val")) for t in tasks] if one_set else None)
        columns = ["base", *(task.name for task in tasks)]
        series = {f"choice_{c}": [values[k] for values in curve.values()] for k, c in enumerate(columns)}
        log.info("%s: alpha %.2f", name, alpha)
        return mixed(alpha), alpha, {"alpha": list(curve), **series} if curve else {}

    def mixer(self, start: dict[str, Tensor], tuned: Model, tasks: Sequence[Task]) -> Callable[[float], dict]:
        """The backbone between `start` (alpha = 0) and that of `tuned`, which was tuned on `tasks`."""
        end = paint.backbone(tuned.net, tuned.classes)
        recalibrated = self.method.statistics == "recalibrated"
        images = self.train_loader(tasks, augment=False) if recalibrated else None

        def mixed(alpha: float) -> dict[str, Tensor]:
            state = paint.interpolated(start, end, alpha)
            if images is not None and alpha > 0:
                tuned.net.load_state_dict(state, strict=False)
                paint.recalibrate(tuned, images)
                state = paint.backbone(tuned.net, tuned.classes)
            return state

        return mixed

    def with_backbone(self, state: dict[str, Tensor]) -> Model:
        """A copy of the base with another backbone and its own classifier."""
        return self.carrying(copy.deepcopy(self.base), state)

    def carrying(self, model: Model, state: dict[str, Tensor]) -> Model:
        """`model` with this backbone, in place."""
        missing = model.net.load_state_dict(state, strict=False)
        if missing.unexpected_keys:
            raise ConfigError(
                f"the backbone of {model.name} has other layers: {', '.join(missing.unexpected_keys[:3])}"
            )
        return model
