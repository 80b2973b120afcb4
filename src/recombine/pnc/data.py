"""The images of target and source: what is in use, what is kept for selection, and the batches of every stage."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from recombine import data as datasets
from recombine.core.errors import ConfigError
from recombine.core.types import Batch, Loader
from recombine.data import Data
from recombine.data.mixed import LabelOffsetLoader, MixedLoader, RepeatedLoader, shares
from recombine.data.settings import DatasetSettings
from recombine.data.splits import class_labels, stratified
from recombine.models import Model
from recombine.pnc.settings import PncSettings
from recombine.pnc.sources import CloneSource, list_sources
from recombine.run.run import Run

__all__ = ["CloneData", "first_outputs", "open_clone_data", "repeat_for_steps", "sample_batch", "select_outputs"]

Part = tuple[Data, np.ndarray]
"""A data set, and positions in its training split."""


def select_outputs(clone: Sequence[int | str], names: Sequence[str]) -> list[int]:
    """Positions of the classes to clone among the source's, ascending; ConfigError for unknown ones."""
    return sorted(set(class_labels("clone", clone, names)))


@dataclass(frozen=True)
class CloneData:
    """The target's data, one source's, and of these the classes to clone."""

    target: Data
    source: Data
    cloned: Data
    """Of the source, only the classes to clone; labels 0..n-1."""
    outputs: list[int]
    """The source's outputs of these classes."""
    given: list[int | str]
    """The same classes as the config gives them."""
    select_fraction: float
    use_target_data: bool
    """Whether images of the target's own classes may train a clone."""
    world: int
    """Processes of the run."""
    open_data: Callable[[DatasetSettings], Data]
    """Opens a data set that is closed with the others."""

    def take(self, names: Sequence[str], outputs: Sequence[int]) -> CloneData:
        """Of the cloned classes only those of these names, which are other `outputs` of another source."""
        cloned = self.open_data(self.cloned.settings.model_copy(update={"class_subset": list(names)}))
        return replace(self, source=cloned, cloned=cloned, outputs=list(outputs), given=list(names))

    @property
    def whole(self) -> bool:
        """Whether images of all the source's classes are at hand, with the labels of its outputs."""
        return self.source is not self.cloned

    @property
    def class_names(self) -> list[str]:
        """Of the classes to clone."""
        return self.cloned.class_names

    @property
    def joint_classes(self) -> int:
        """Size of the joint label space: the target's classes, then the cloned ones."""
        return self.target.classes + len(self.outputs)

    def split(self, data: Data, part: str) -> np.ndarray:
        """Positions of `train` or `select`: the second is a stratified part of the images in use."""
        indices, seed = data.indices("train"), data.settings.fraction_seed
        _check_sizes(data, self.select_fraction)
        rest, held = stratified(data.labels("train"), self.select_fraction, seed, "select_fraction")
        return indices[rest if part == "train" else held]

    def count_samples(self) -> dict[str, float]:
        """Training images of either kind that a clone learns from."""
        target = len(self.split(self.target, "train")) if self.use_target_data else 0
        return {"samples_original": float(target), "samples_cloned": float(len(self.split(self.cloned, "train")))}

    def parts(self) -> list[Part]:
        """The images in use for training: the target's own, then those of the cloned classes."""
        return [(data, self.split(data, "train")) for data in (self.target, self.cloned)]

    def whole_parts(self) -> list[Part]:
        """The same of all training images but those kept for selection."""
        found = []
        for data in (self.target, self.cloned):
            whole = self.open_data(data.settings.model_copy(update={"fraction": 1.0}))
            found.append((whole, np.setdiff1d(whole.indices("train"), self.split(data, "select"))))
        return found

    def eval_loader(self, data: Data, split: str, batch_size: int, size: int) -> Loader:
        """Images of `test`, or of the part kept for selection (`select`), once each."""
        if split == "select":
            indices = self.split(data, "select")
            return data.loader("train", batch_size, train=False, indices=indices, size=size)
        return data.loader(split, batch_size, train=False, indices=None, size=size)

    def target_loader(self, batch_size: int, size: int) -> Loader:
        """Images of the target's own classes in use for training, once each and not augmented."""
        indices = self.split(self.target, "train")
        return self.target.loader("train", batch_size, train=False, indices=indices, size=size, augment=False)

    def cloned_loader(self, batch_size: int, size: int, *, train: bool = True, augment: bool = False) -> Loader:
        """Images of the classes to clone, labels 0..n-1."""
        return self._loader(self.cloned, self.split(self.cloned, "train"), batch_size, size, train, augment)

    def other_indices(self) -> np.ndarray:
        """Positions of the source's images of classes that are not cloned; ConfigError if there are none."""
        indices = self.source.indices("train")
        others = indices[~np.isin(self.source.labels("train"), self.outputs)]
        if not len(others):
            raise ConfigError("method.use_complement=true: all classes of the source are cloned, there is no other")
        return others

    def contrast_loader(
        self, batch_size: int, source: Model, *, train: bool = True, augment: bool = False
    ) -> tuple[Loader, int]:
        """Images of the classes to clone beside as many of the source's others, and how many of each process's are
        the first; not in training: all in use of both kinds, once. ConfigError if all classes of the source are cloned.
        """
        others, size = self.other_indices(), source.canvas
        if not train:
            both = np.concatenate([self.split(self.cloned, "train"), others])
            return self._loader(self.source, both, batch_size, size, train, augment), 0
        halves = shares([1, 1], batch_size, self.world)
        cloned = self.cloned_loader(halves[0], size, augment=augment)
        rest = self._loader(self.source, others, halves[1], size, train, augment)
        return MixedLoader([cloned, rest], source.preprocess.fit), cloned.batch_size // self.world

    def _loader(
        self, data: Data, indices: np.ndarray, batch_size: int, size: int, train: bool, augment: bool
    ) -> Loader:
        most = min(batch_size, len(indices) // self.world * self.world)
        return data.loader("train", most, train=train, indices=indices, size=size, augment=augment)

    def joint_loader(self, batch_size: int, target: Model) -> tuple[Loader, int]:
        """Batches of both kinds in the joint label space, and how many of a process's samples are the target's."""
        if not self.use_target_data:
            return LabelOffsetLoader(self.cloned_loader(batch_size, target.canvas), self.target.classes), 0
        loader, count = self.mix(self.parts(), batch_size, target, augment=False)
        return loader, count // self.world

    def mix(
        self, parts: Sequence[Part], batch_size: int, target: Model, augment: bool | str
    ) -> tuple[MixedLoader, int]:
        """Both parts in each batch, of all their images at most, and how many are the first one's, of all processes."""
        sizes = [len(indices) for _, indices in parts]
        counts = shares(sizes, min(batch_size, sum(sizes) // self.world * self.world), self.world)
        first, second = (
            data.loader("train", count, train=True, indices=indices, size=target.canvas, augment=augment)
            for (data, indices), count in zip(parts, counts, strict=True)
        )
        return MixedLoader([first, LabelOffsetLoader(second, self.target.classes)], target.preprocess.fit), counts[0]


def _check_sizes(data: Data, fraction: float) -> None:
    """ConfigError if the stratified part of some class would be empty, or leave nothing."""
    counts = np.bincount(data.labels("train"), minlength=data.classes)
    smallest = int(counts.argmin())
    needed = math.ceil(1 / min(fraction, 1 - fraction) - 1e-9)
    if counts[smallest] < needed:
        raise ConfigError(
            f"select_fraction={fraction} needs {needed} images in use of every class of {data.name}, but "
            f"{data.class_names[smallest]} has {counts[smallest]}; give more images (dataset.fraction=, "
            f"source_data.fraction=) or another select_fraction, such as select_fraction=0.5"
        )


def first_outputs(pairs: Sequence[CloneData]) -> list[int]:
    """Where the classes of each source begin among the outputs of the network with all clones."""
    counts = [pairs[0].target.classes, *(len(pair.outputs) for pair in pairs)]
    return [sum(counts[: k + 1]) for k in range(len(pairs))]


def repeat_for_steps(loader: Loader, epochs: float, min_steps: int) -> Loader:
    """The loader, or a small set repeated within an epoch so that `epochs` of them make `min_steps` steps."""
    times = math.ceil(min_steps / max(1, epochs * len(loader)))
    return loader if times <= 1 else RepeatedLoader(loader, times)


def sample_batch(data: Data, split: str, indices: np.ndarray, count: int, size: int) -> Batch:
    """At most `count` images, spread over `indices`."""
    spread = indices[:: max(1, len(indices) // count)][:count]
    loader = data.loader(split, len(spread), train=False, indices=spread, size=size)
    with closing(loader.epoch(0)) as batches:
        return next(batches)


def open_clone_data(settings: PncSettings, run: Run, stack: ExitStack) -> list[CloneData]:
    """The data of the target with each source's, closed by `stack`; ConfigError for classes that cannot be cloned."""
    where: dict[str, Any] = {"seed": run.seed, "device": run.device, "rank": run.rank, "world": run.world}
    roots: dict[str, Any] = {
        "data_root": settings.data_root,
        "cache_root": settings.cache_root,
        "loader": settings.loader,
    }

    def open_data(node: Any, path: str = "source_data") -> Data:
        data = datasets.open_data(node, **roots, **where, path=path)
        stack.callback(data.close)
        return data

    target = open_data(settings.dataset, "dataset")
    taken = dict.fromkeys(target.class_names, "the target")
    pairs = []
    for source in list_sources(settings.model_dump(exclude_unset=True)):
        data = open_data(source.data)
        outputs = _free_outputs(source, data.class_names, taken, settings.on_collision)
        names = [data.class_names[k] for k in outputs]
        given = [c for c in source.clone if (c if isinstance(c, int) else data.class_names.index(c)) in outputs]
        taken |= dict.fromkeys(names, f"the source {source.name}")
        cloned = open_data({**source.data, "class_subset": names})
        options = (settings.select_fraction, settings.use_target_data, run.world, open_data)
        pairs.append(CloneData(target, data, cloned, outputs, given, *options))
    return pairs


def _free_outputs(source: CloneSource, known: Sequence[str], taken: Mapping[str, str], on_collision: str) -> list[int]:
    """The source's outputs to clone, without those whose classes are `taken`; ConfigError if there are such."""
    outputs = select_outputs(source.clone, known)
    doubles = {known[k]: taken[known[k]] for k in outputs if known[k] in taken}
    free = [k for k in outputs if known[k] not in doubles]
    if doubles and (on_collision == "error" or not free):
        who = ", ".join(dict.fromkeys(doubles.values()))
        raise ConfigError(
            f"clone: {who} knows {', '.join(doubles)} already; clone other classes of {source.name}"
            + ("" if not free else ", or leave these out by on_collision=first")
        )
    return free
