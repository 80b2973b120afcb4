"""The base and the tasks of a run as data: which images each has, as a given network sees them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from recombine import data as datasets
from recombine.core.distributed import gather_by_index
from recombine.core.errors import ConfigError
from recombine.core.settings import to_dict
from recombine.core.types import Loader
from recombine.data import Data
from recombine.models import Model
from recombine.patch.settings import task_nodes
from recombine.run.run import Run

if TYPE_CHECKING:
    from omegaconf import DictConfig

__all__ = ["Task", "choice_loader", "label_offsets", "open_base", "open_source", "open_tasks", "random_images"]

CHOICE_IMAGES = 5000


@dataclass
class Task:
    """One data set, as a given network sees it: a task to learn, or what the base was trained on."""

    name: str
    data: Data
    model: Model
    """The base network, which says how large images are."""
    eval_batch_size: int
    _loaders: dict[str, Loader] = field(default_factory=dict, repr=False)

    @property
    def classes(self) -> int:
        """Number of its classes."""
        return self.data.classes

    def train_loader(self, batch_size: int, augment: bool = True) -> Loader:
        """Training batches in random order; without a random crop, the network sees what it sees in evaluation."""
        loader = self.data.loader("train", batch_size, train=True, size=self.model.canvas, augment=augment, even=True)
        if loader.crop is None:
            return loader
        return self.data.loader("train", batch_size, train=True, size=self.model.size, even=True)

    def eval_loader(self, split: str) -> Loader:
        """Every image of a split once, not augmented; one loader a split, so a resident one decodes it once."""
        if split not in self._loaders:
            self._loaders[split] = self.subset(split, None)
        return self._loaders[split]

    def subset(self, split: str, indices: Any) -> Loader:
        """The images of a split at these positions (an array; None: all) once, not augmented."""
        size = self.model.canvas
        return self.data.loader(split, self.eval_batch_size, train=False, indices=indices, size=size)


def open_tasks(cfg: DictConfig, run: Run, model: Model) -> list[Task]:
    """Open every task for `model`."""
    settings = to_dict(cfg)
    roots: dict[str, Any] = {"data_root": cfg.data_root, "cache_root": cfg.cache_root, "loader": cfg.loader}
    place: dict[str, Any] = {"seed": run.seed, "device": run.device, "rank": run.rank, "world": run.world}
    nodes = task_nodes(settings["tasks"], settings["task"], settings["method"])
    opened = [datasets.open_data(node, **roots, **place, path="task") for node in nodes]
    for data in opened:
        data.indices("test")  # a part that cannot be had is told before the training
    return [Task(data.settings.name, data, model, cfg.eval_batch_size) for data in opened]


def open_base(cfg: DictConfig, run: Run, model: Model) -> Task:
    """Open the data that `model` was trained on; ConfigError if it has another number of classes."""
    base = open_source(cfg, run, model)
    if base.classes != model.classes:
        base.data.close()
        raise ConfigError(
            f"base {model.name} has {model.classes} classes and dataset {base.name} {base.classes}; "
            f"choose the data it was trained on, or a label map (dataset.label_map)"
        )
    return base


def open_source(cfg: DictConfig, run: Run, model: Model) -> Task:
    """Open the run's `dataset` for `model`."""
    data = datasets.open_data_for(cfg, run)
    return Task(data.name, data, model, cfg.eval_batch_size)


def choice_loader(base: Task, split: str, seed: int) -> Loader:
    """The images of the base's data on which choices are made: at most 5,000 of a split, drawn with `seed`."""
    indices = base.data.indices(split)
    if len(indices) > CHOICE_IMAGES:
        indices = np.sort(np.random.default_rng(seed).choice(indices, CHOICE_IMAGES, replace=False))
    return base.subset(split, indices)


def label_offsets(tasks: Sequence[Task]) -> list[int]:
    """Where the classes of each task start in the union of all."""
    return [sum(task.classes for task in tasks[:k]) for k in range(len(tasks))]


def random_images(tasks: Sequence[Task], run: Run, count: int) -> Tensor:
    """Training images in random order at the network's size, at most `count`; of several tasks in turn.

    uint8 [N, 3, size, size] on the run's device; the order depends on its seed.
    """
    images: list[Tensor] = []
    turns: list[int] = []
    for task in tasks:
        indices = np.random.default_rng(run.seed).permutation(task.data.indices("train"))[: count // len(tasks)]
        canvas, positions = task.model.canvas, indices.tolist()
        loader = task.data.loader("train", len(indices), train=False, indices=positions, size=canvas)
        with closing(loader.epoch(0)) as batches:
            columns = [(batch.index, batch.images) for batch in batches]
        # every process needs all of them; a loader gives each process its part, in ascending order
        places, found = gather_by_index(*(torch.cat(column) for column in zip(*columns, strict=True)))
        images.append(task.model.preprocess.fit(found[torch.searchsorted(places, torch.from_numpy(indices))]))
        turns += range(len(indices))
    return torch.cat(images)[np.argsort(turns, kind="stable")].to(run.device)
