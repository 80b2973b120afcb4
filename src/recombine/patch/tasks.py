"""The tasks of a run: data sets by name, each opened with the run's data settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from recombine import data as datasets
from recombine.core.errors import ConfigError
from recombine.core.types import Loader
from recombine.data import Data
from recombine.data import registry as named
from recombine.data.checks import check_node
from recombine.models import Model
from recombine.patch.file import name_problem
from recombine.run.config import DictConfig, plain
from recombine.run.run import Run

__all__ = ["Task", "chooses", "label_offsets", "listed", "nodes", "open_tasks", "problems"]

HELD_OUT = 0.1
"""Part of a task's training images that PAINT's mixing weight is chosen on, as in its authors' code."""


@dataclass
class Task:
    """One data set to learn, as a given network sees it."""

    name: str
    data: Data
    model: Model
    eval_batch_size: int
    _whole: dict[str, Loader] = field(default_factory=dict, repr=False)

    @property
    def classes(self) -> int:
        """Number of its classes."""
        return self.data.classes

    def train(self, batch_size: int, augment: bool = True) -> Loader:
        """Training batches in random order; without a random crop, the network sees what it sees in evaluation."""
        loader = self.data.loader("train", batch_size, train=True, size=self.model.canvas, augment=augment)
        if getattr(loader, "crop", None) is None:
            return loader
        return self.data.loader("train", batch_size, train=True, size=self.model.size)

    def all_of(self, split: str) -> Loader:
        """Every image of a split once, not augmented; one loader a split, so a resident one decodes it once."""
        if split not in self._whole:
            size = self.model.canvas
            self._whole[split] = self.data.loader(split, self.eval_batch_size, train=False, size=size)
        return self._whole[split]


def listed(value: Any) -> list:
    """A list of the config; a single item stands for a list of one, null for an empty one."""
    return list(value) if isinstance(value, list | tuple) else [] if value is None else [value]


def chooses(cfg: DictConfig) -> bool:
    """Whether the method chooses something by held-out images."""
    return cfg.method.get("select", "fixed") != "fixed"


def nodes(cfg: DictConfig) -> list[dict[str, Any]]:
    """The dataset node of each task: config/dataset/<name>.yaml, then `task` of the config, then the task's own keys.

    Raises ConfigError for names that are no data set.
    """
    found, wrong = [], []
    for item in listed(plain(cfg)["tasks"]):
        given = {"name": item} if isinstance(item, str) else item
        name = str(given.get("dataset", given.get("name"))) if isinstance(given, Mapping) else str(item)
        try:
            own = named.node(name)
        except ConfigError as error:
            wrong += [f"tasks: {text}" for text in error.problems]
            continue
        if problem := name_problem(str(given.get("name", name))):
            wrong.append(f"tasks: {problem}; 'tasks=[{{name: another, dataset: {name}}}]' gives another one")
            continue
        more = {key: value for key, value in given.items() if key != "dataset"}
        node = {**own, **plain(cfg)["task"], **more}
        if node.get("val_fraction") == "auto":
            node["val_fraction"] = HELD_OUT if chooses(cfg) else 0.0
        found.append(node)
    doubles = {node["name"] for node in found if [n["name"] for n in found].count(node["name"]) > 1}
    wrong += [f"tasks names {name} twice; give one of them another name" for name in sorted(doubles)]
    if not listed(plain(cfg)["tasks"]):
        wrong.append("tasks is empty; name at least one dataset, such as tasks=[mnist,usps]")
    if wrong:
        raise ConfigError(wrong)
    return found


def problems(cfg: DictConfig) -> list[str]:
    """What keeps the tasks from being opened; reads names only."""
    try:
        return [
            f"task {node['name']}: {problem}"
            for node in nodes(cfg)
            for problem in check_node(node, cfg.data_root, "dataset")
        ]
    except ConfigError as error:
        return error.problems


def open_tasks(cfg: DictConfig, run: Run, model: Model) -> list[Task]:
    """Open every task for `model`."""
    roots = {"data_root": cfg.data_root, "cache_root": cfg.cache_root, "loader": cfg.loader}
    where = {"seed": run.seed, "device": run.device, "rank": run.rank, "world": run.world}
    opened = [datasets.open_data(node, **roots, **where) for node in nodes(cfg)]
    return [Task(data.name, data, model, cfg.eval_batch_size) for data in opened]


def label_offsets(tasks: Sequence[Task]) -> list[int]:
    """Where the classes of each task start in the union of all."""
    return [sum(task.classes for task in tasks[:k]) for k in range(len(tasks))]
