"""The pair of networks with their data: what is cloned, from how many images, and how a result is measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import cached_property
from typing import Any

import numpy as np
from torch import nn

from recombine import data as datasets
from recombine import models as zoo
from recombine.core.errors import ConfigError
from recombine.core.types import Batch, Loader
from recombine.data import Data
from recombine.data.mixed import LabelOffsetLoader, MixedLoader, RepeatedLoader, shares
from recombine.data.splits import stratified
from recombine.engine.engine import Engine, Fit
from recombine.engine.evaluate import Predictions, predict
from recombine.engine.method import Method
from recombine.models import Model
from recombine.models.graph import Traced, trace
from recombine.pnc.metrics import average
from recombine.pnc.sources import CloneSource
from recombine.run.config import DictConfig, build, plain
from recombine.run.run import Run

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
    """Target and one source, frozen; the target's own data and those of the classes to clone."""

    def __init__(self, cfg: DictConfig, run: Run, source: CloneSource, earlier: Sequence[Workbench] = ()) -> None:
        """`earlier`: the workbenches of other sources; target and its data are theirs, their classes are taken."""
        self.cfg, self.run = cfg, run
        self.facts: dict[str, float] = {}
        """What training has to say of itself beside its network: metrics of the row."""
        self._opened: list[Data] = []
        self._source = source
        self.original = earlier[0].original if earlier else self._open(plain(cfg.dataset))
        self.source_data = self._open(source.data)
        self.outputs = self._free(earlier)
        self.names = [self.source_data.class_names[i] for i in self.outputs]
        self.cloned = self._open({**source.data, "class_subset": self.names})
        self.target = earlier[0].target if earlier else self._network(cfg.target, self.original, "target")
        self.folder = f"source{len(earlier) + 1}/" if cfg.sources else ""

    def _free(self, earlier: Sequence[Workbench]) -> list[int]:
        """The source's outputs to clone, without those whose classes are taken; ConfigError if there are such."""
        known = self.source_data.class_names
        outputs = chosen_classes(self._source.clone, known)
        taken = {name: "the target" for name in self.original.class_names}
        taken |= {name: f"the source {bench.source_name}" for bench in earlier for name in bench.names}
        doubles = {known[k]: taken[known[k]] for k in outputs if known[k] in taken}
        free = [k for k in outputs if known[k] not in doubles]
        if doubles and (self.cfg.on_collision == "error" or not free):
            who = ", ".join(dict.fromkeys(doubles.values()))
            raise ConfigError(
                f"clone: {who} knows {', '.join(doubles)} already; clone other classes of {self.source_name}"
                + ("" if not free else ", or leave these out by on_collision=first")
            )
        return free

    @property
    def source_name(self) -> str:
        """How rows and files call the source."""
        return self._source.name

    @cached_property
    def source(self) -> Model:
        """The network to clone from."""
        return self._network(self._source.model, self.source_data, "source")

    def _open(self, node: dict) -> Data:
        roots = {"data_root": self.cfg.data_root, "cache_root": self.cfg.cache_root, "loader": self.cfg.loader}
        where = {"seed": self.run.seed, "device": self.run.device, "rank": self.run.rank, "world": self.run.world}
        self._opened.append(datasets.open_data(node, **roots, **where))
        return self._opened[-1]

    def _network(self, node: Any, data: Data, role: str) -> Model:
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

    @property
    def class_names(self) -> list[str]:
        """Of the target, then the cloned ones."""
        return [*self.original.class_names, *self.names]

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
        return MixedLoader([cloned, rest], self.source.preprocess.fit), cloned.batch_size // self.run.world

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
        if not self.cfg.use_target_data:
            loader = self.clone_loader(batch_size, canvas=self.target.canvas)
            return LabelOffsetLoader(loader, self.original.classes), 0
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
    ) -> tuple[MixedLoader, int]:
        """Both sets in each batch, and how many of its samples are the first one's, over all processes."""
        sizes = [len(part) for _, part in sets]
        self.facts |= {"samples_original": float(sizes[0]), "samples_cloned": float(sizes[1])}
        counts = shares(sizes, batch_size, self.run.world)
        own, new = (
            data.loader("train", count, train=True, indices=part, size=self.target.canvas, augment=augment)
            for (data, part), count in zip(sets, counts, strict=True)
        )
        return MixedLoader([own, LabelOffsetLoader(new, self.original.classes)], self.target.preprocess.fit), counts[0]

    def long_enough(self, loader: Loader, epochs: float, min_steps: int) -> Loader:
        """The loader, or so many passes over a small set as one epoch that `epochs` of them make `min_steps` steps."""
        times = math.ceil(min_steps / max(1, epochs * len(loader)))
        return loader if times <= 1 else RepeatedLoader(loader, times)

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
        fit = engine.fit(method, loader, *constructors, name=self.folder + name)
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
        return self.said_of_original(net, split), self.said_of_cloned(net, split, self.original.classes)

    def said_of_original(self, net: nn.Module, split: str) -> Predictions:
        """What a network in a joint label space says about the target's own images."""
        return predict(net, self._whole(self.original, split, self.target), precision=self.cfg.engine.precision)

    def said_of_cloned(self, net: nn.Module, split: str, offset: int) -> Predictions:
        """What it says about the cloned classes, which begin at `offset` of its outputs."""
        loader = LabelOffsetLoader(self._whole(self.cloned, split, self.target), offset)
        return predict(net, loader, precision=self.cfg.engine.precision)

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
        return self._first(data, "test", indices, count, self.source)

    def some(self, data: Data, name: str, count: int, model: Model) -> Batch:
        """At most `count` images of a part (`train` or `select`), spread over it, for `model`."""
        return self._first(data, "train", self.part(data, name), count, model)

    def _first(self, data: Data, split: str, indices: np.ndarray, count: int, model: Model) -> Batch:
        some = indices[:: max(1, len(indices) // count)][:count]
        loader = data.loader(split, len(some), train=False, indices=some, size=model.canvas)
        with closing(loader.epoch(0)) as batches:
            return next(batches)
