"""The pair of networks with their data: what is cloned, from how many images, and how a result is measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import cached_property

import numpy as np
from torch import nn

from src import data as datasets
from src import models as zoo
from src.core.config import DictConfig, build, plain
from src.core.console import show
from src.core.engine import Engine, Fit
from src.core.errors import ConfigError
from src.core.evaluate import Predictions, predict
from src.core.method import Method
from src.core.run import Run
from src.core.types import Batch, Loader
from src.data import Data
from src.data.joint import Joint, Relabelled, Repeated, shares
from src.data.splits import stratified
from src.models import Model
from src.models.graph import Traced, trace
from src.pnc.measures import average, top1

__all__ = ["Workbench", "chosen_classes"]


def chosen_classes(clone: Sequence[int | str], names: Sequence[str]) -> list[int]:
    """Positions of the classes to clone among the source's, ascending (section 3.2); ConfigError for unknown ones."""
    wrong = [c for c in clone if not (c in names or (isinstance(c, int) and 0 <= c < len(names)))]
    if wrong or not clone:
        raise ConfigError(
            f"clone={list(clone)}: {wrong or 'nothing'} is not among the source's classes; known are "
            f"{', '.join(f'{i} ({name})' for i, name in enumerate(names[:12]))}{', ...' if len(names) > 12 else ''}"
        )
    return sorted({c if isinstance(c, int) else list(names).index(c) for c in clone})


class Workbench:
    """Target and source, frozen; the target's own data and those of the classes to clone."""

    def __init__(self, cfg: DictConfig, run: Run) -> None:
        self.cfg, self.run = cfg, run
        self.facts: dict[str, float] = {}
        """What training has to say of itself beside its network: metrics of the row."""
        self._opened: list[Data] = []
        self.original = self._open(plain(cfg.dataset))
        whole = plain(cfg.source_data)
        self.source_data = self._open(whole)
        self.outputs = chosen_classes(plain(cfg)["clone"], self.source_data.class_names)
        names = [self.source_data.class_names[i] for i in self.outputs]
        self.cloned = self._open({**whole, "class_subset": names})
        self.class_names = [*self.original.class_names, *names]
        if doubles := sorted(set(self.original.class_names).intersection(names)):
            raise ConfigError(f"clone: the target knows {', '.join(doubles)} already; clone classes it does not know")
        self.target = self._network(cfg.target, self.original, "target")
        self.source = self._network(cfg.source, self.source_data, "source")

    def _open(self, node: dict) -> Data:
        roots = {"data_root": self.cfg.data_root, "cache_root": self.cfg.cache_root, "loader": self.cfg.loader}
        where = {"seed": self.run.seed, "device": self.run.device, "rank": self.run.rank, "world": self.run.world}
        self._opened.append(datasets.open_data(node, **roots, **where))
        return self._opened[-1]

    def _network(self, node: DictConfig, data: Data, role: str) -> Model:
        model = zoo.build(node, weights_root=self.cfg.weights_root, seed=self.run.seed)
        if model.classes != data.classes:
            raise ConfigError(
                f"{role} {model.name} has {model.classes} classes and its data, {data.name}, {data.classes}; choose "
                f"the data it was trained on (dataset= for the target, dataset@source_data= for the source)"
            )
        return model.to(self.run.device).eval().requires_grad_(False)

    def close(self) -> None:
        """Close all data."""
        for data in self._opened:
            data.close()

    @cached_property
    def traced(self) -> tuple[Traced, Traced]:
        """The graphs of target and source."""
        return trace(self.target.net, self.target.size), trace(self.source.net, self.source.size)

    def describe(self) -> None:
        """Show both networks with what they score on their own classes."""
        if self.run.main:
            measured = {m.name: top1(self.alone(m, d)) for m, d in self.roles}
            show(zoo.describe([self.target, self.source], measured))

    @property
    def roles(self) -> tuple[tuple[Model, Data], ...]:
        """Both networks with the data they know."""
        return (self.target, self.original), (self.source, self.source_data)

    # ---------------------------------------------------------------------------------------------- data

    def part(self, data: Data, name: str) -> np.ndarray:
        """Positions of `train` or `select`: the second is a stratified part of the images in use, kept for choices."""
        indices = data.indices("train")
        labels = data.labels("train")
        rest, held = stratified(labels, self.cfg.select_fraction, data.settings.fraction_seed, "select_fraction")
        return indices[rest if name == "train" else held]

    def clone_loader(
        self, batch_size: int, *, train: bool = True, canvas: int | None = None, augment: bool = False
    ) -> Loader:
        """Images of the classes to clone, labels 0..n-1."""
        indices = self.part(self.cloned, "train")
        self.facts |= {"samples_original": 0.0, "samples_cloned": float(len(indices))}
        return self._of(self.cloned, indices, batch_size, train, canvas, augment)

    def contrast_loader(self, batch_size: int, *, train: bool = True, augment: bool = False) -> tuple[Loader, int]:
        """Images of the classes to clone beside as many of the source's others, and how many of each process's are
        the first; not in training: all in use of both kinds, once. ConfigError if all classes of the source are cloned.
        """
        data, indices = self.source_data, self.source_data.indices("train")
        others = indices[~np.isin(data.labels("train"), self.outputs)]
        if not len(others):
            raise ConfigError("method.use_complement=true: all classes of the source are cloned, there is no other")
        self.facts["samples_others"] = float(len(others))
        if not train:
            both = np.concatenate([self.part(self.cloned, "train"), others])
            return self._of(data, both, batch_size, train, None, augment), 0
        halves = shares([1, 1], batch_size, self.run.world)
        cloned = self.clone_loader(halves[0], augment=augment)
        rest = self._of(data, others, halves[1], train, None, augment)
        return Joint([cloned, rest], self.source.preprocess.fit), cloned.batch_size // self.run.world

    def _of(
        self, data: Data, indices: np.ndarray, batch_size: int, train: bool, canvas: int | None, augment: bool
    ) -> Loader:
        size = canvas or self.source.canvas
        most = min(batch_size, len(indices) // self.run.world * self.run.world)
        return data.loader("train", most, train=train, indices=indices, size=size, augment=augment)

    def own_loader(self) -> Loader:
        """Images of the target's own classes that are in use for training, once each and not augmented."""
        options = {"indices": self.part(self.original, "train"), "size": self.target.canvas, "augment": False}
        return self.original.loader("train", self.cfg.eval_batch_size, train=False, **options)

    def joint_loader(self, batch_size: int) -> tuple[Loader, int]:
        """Batches of both kinds in the joint label space, and how many of a process's samples are the target's."""
        if not self.cfg.use_original:
            loader = self.clone_loader(batch_size, canvas=self.target.canvas)
            return Relabelled(loader, self.original.classes), 0
        sets = [(data, self.part(data, "train")) for data in (self.original, self.cloned)]
        loader, count = self._joint(sets, batch_size, augment=False)
        return loader, count // self.run.world

    def scratch_loader(self, batch_size: int, *, whole: bool, augment: str) -> Loader:
        """Batches of both kinds: of all training images, or of those that clones train on."""
        sets = [(data, self.part(data, "train")) for data in (self.original, self.cloned)]
        if whole:
            opened = [self._open({**vars(data.settings), "fraction": 1.0}) for data, _ in sets]
            sets = [(data, data.indices("train")) for data in opened]
        return self._joint(sets, batch_size, augment)[0]

    def _joint(
        self, sets: Sequence[tuple[Data, np.ndarray]], batch_size: int, augment: bool | str
    ) -> tuple[Joint, int]:
        """Both sets in each batch, and how many of its samples are the first one's, over all processes."""
        sizes = [len(part) for _, part in sets]
        self.facts |= {"samples_original": float(sizes[0]), "samples_cloned": float(sizes[1])}
        counts = shares(sizes, batch_size, self.run.world)
        own, new = (
            data.loader("train", count, train=True, indices=part, size=self.target.canvas, augment=augment)
            for (data, part), count in zip(sets, counts, strict=True)
        )
        return Joint([own, Relabelled(new, self.original.classes)], self.target.preprocess.fit), counts[0]

    def long_enough(self, loader: Loader, epochs: float, min_steps: int) -> Loader:
        """The loader, or so many passes over a small set as one epoch that `epochs` of them make `min_steps` steps."""
        times = math.ceil(min_steps / max(1, epochs * len(loader)))
        return loader if times <= 1 else Repeated(loader, times)

    def fit(
        self,
        method: Method,
        loader: Loader,
        name: str,
        epochs: float,
        optimizer: Callable | None = None,
        schedule: Callable | None = None,
    ) -> Fit:
        """Train for so many epochs, with the run's optimizer and schedule where no other is given."""
        engine = Engine({**plain(self.cfg.engine), "epochs": epochs}, self.run)
        constructors = optimizer or build(self.cfg.optimizer), schedule or build(self.cfg.schedule)
        fit = engine.fit(method, loader, *constructors, name=name)
        stage = f"{name.partition('/')[0]}_seconds"
        self.facts[stage] = self.facts.get(stage, 0.0) + fit.seconds
        return fit

    # ----------------------------------------------------------------------------------------- measuring

    def alone(self, model: Model, data: Data) -> Predictions:
        """What a network says about the test images of its own classes."""
        return predict(model, self._whole(data, "test", model), self.run.cache, precision=self.cfg.engine.precision)

    def _whole(self, data: Data, split: str, model: Model) -> Loader:
        indices = self.part(data, "select") if split == "select" else None
        stored = "train" if split == "select" else split
        size = self.cfg.eval_batch_size
        return data.loader(stored, size, train=False, indices=indices, size=model.canvas)

    def said(self, net: nn.Module, split: str) -> tuple[Predictions, Predictions]:
        """What a network in the joint label space says about the target's own images, and about the cloned classes."""
        offset, precision = self.original.classes, self.cfg.engine.precision
        own = predict(net, self._whole(self.original, split, self.target), precision=precision)
        new = predict(net, Relabelled(self._whole(self.cloned, split, self.target), offset), precision=precision)
        return own, new

    def average(self, net: nn.Module, split: str) -> float:
        """Mean of old and new accuracy."""
        return average(*self.said(net, split))

    def whole_source(self) -> Loader:
        """The test images of all classes of the source, as it sees them."""
        return self._whole(self.source_data, "test", self.source)

    def some_of_source(self, count: int, classes: Sequence[int]) -> Batch:
        """At most `count` test images of some of the source's classes."""
        data = self.source_data
        indices = data.indices("test")[np.isin(data.labels("test"), classes)]
        some = indices[:: max(1, len(indices) // count)][:count]
        loader = data.loader("test", len(some), train=False, indices=some, size=self.source.canvas)
        with closing(loader.epoch(0)) as batches:
            return next(batches)
