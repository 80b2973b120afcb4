"""Training of a run: what trains, in which batches, and how long it took."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from recombine.core.types import Loader
from recombine.data.mixed import LabelOffsetLoader, MixedLoader, shares
from recombine.engine.engine import Engine, Fit
from recombine.engine.method import Method, Supervised
from recombine.models import Model
from recombine.models.graph import traced
from recombine.patch.cached_features import cache_features
from recombine.patch.patched import TaskNetwork
from recombine.patch.serialization import start_from
from recombine.patch.tasks import Task, label_offsets, random_images
from recombine.run.config import build
from recombine.run.run import Run

if TYPE_CHECKING:
    from omegaconf import DictConfig

__all__ = ["PatchBuilder", "TaskTraining", "Trainer", "initial_weights", "join", "task_loaders", "train_patch"]


log = logging.getLogger(__name__)


class TaskTraining(Supervised):
    """Cross entropy of one task; of a `TaskNetwork` with a frozen base only the patch trains."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net)
        if isinstance(net, TaskNetwork) and net.frozen:
            self.frozen = ("net.base",)


class Trainer:
    """Fits networks with the optimizer and schedule of a run, and keeps what each fit cost."""

    def __init__(self, cfg: DictConfig, engine: Engine) -> None:
        self.cfg, self.engine = cfg, engine
        self.costs: dict[str, dict[str, float]] = {}
        """Optimizer steps and seconds of each fit, by its name."""

    def fit(self, name: str, net: nn.Module, loader: Loader) -> Fit:
        """Train what trains in `net`, in place."""
        return self.fit_method(name, TaskTraining(net), loader)

    def fit_method(self, name: str, method: Method, loader: Loader, optimizer: Callable | None = None) -> Fit:
        """Train a method in place; `optimizer`: another one than the run's."""
        optimizer = optimizer or build(self.cfg.optimizer)
        fit = self.engine.fit(method, loader, optimizer, build(self.cfg.schedule), name=name)
        self.costs[name] = {"steps": float(fit.steps), "fit_seconds": fit.seconds}
        return fit

    def cost(self, *names: str) -> dict[str, float]:
        """Steps and seconds of these fits together; without names, of all."""
        chosen = [self.costs[name] for name in names or self.costs]
        return {key: sum(cost[key] for cost in chosen) for key in ("steps", "fit_seconds")}


class PatchBuilder:
    """Builds patches of one method on one network; ConfigError at once for what the network lacks."""

    def __init__(self, method: Any, model: Model, run: Run) -> None:
        """`method(traced, classes)` constructs a patch."""
        self.method, self.model, self.run = method, model, run
        self.traced = traced(model)
        with torch.device("meta"):
            patch = method(self.traced, 1)
        log.info("%s", patch.summary())
        for doubt in patch.doubts():
            log.warning("%s: %s", model.name, doubt)

    def build(self, name: str, classes: int, *, frozen: bool = True) -> TaskNetwork:
        """The network with a new patch, whose weights depend on the run's seed and `name`."""
        with initial_weights(self.run.seed, name):
            patch = self.method(self.traced, classes)
        return TaskNetwork(self.model, patch, frozen=frozen).to(self.run.device)


@contextmanager
def initial_weights(seed: int, name: str) -> Iterator[None]:
    """Draw weights from a generator of `seed` and `name`; torch's own is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(zlib.crc32(f"{seed} {name}".encode()))
        yield


def train_patch(trainer: Trainer, builder: PatchBuilder, name: str, tasks: Sequence[Task]) -> TaskNetwork:
    """A new patch, trained for one task, or for several with a common label space."""
    cfg, run = trainer.cfg, trainer.engine.run
    network = builder.build(name, sum(task.classes for task in tasks))
    network.patch.prepare(network, partial(random_images, tasks, run), run.seed)
    if cfg.patch_weights:
        start_from(network, cfg.patch_weights, [str(label) for task in tasks for label in task.data.class_names])
    loaders = task_loaders(tasks, cfg.batch_size, run.world)
    for loader in loaders:
        loader.views = cfg.augment_views
    loaders = cache_features(loaders, tasks, network, trainer.engine.cfg.precision, cfg.feature_cache_gib)
    trainer.fit(name, network, join(loaders, tasks))
    return network


def task_loaders(tasks: Sequence[Task], batch_size: int, world: int, *, augment: bool = True) -> list[Any]:
    """Training batches of each task, together `batch_size`: in proportion to the sizes of their training sets."""
    sizes = [len(task.data.indices("train")) for task in tasks]
    parts = shares(sizes, batch_size, world) if len(tasks) > 1 else [batch_size]
    return [task.train_loader(part, augment) for task, part in zip(tasks, parts, strict=True)]


def join(loaders: Sequence[Loader], tasks: Sequence[Task]) -> Loader:
    """One loader of all tasks, with one label space."""
    if len(tasks) == 1:
        return loaders[0]
    offsets = label_offsets(tasks)
    moved = [LabelOffsetLoader(loader, offset) for loader, offset in zip(loaders, offsets, strict=True)]
    return MixedLoader(moved, tasks[0].model.preprocess.fit)
