"""Data sets by name, and their loaders: uint8 batches on the device, the same from every loader."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recombine.core.errors import ConfigError
from recombine.data import augment as operations
from recombine.data.boxes import BoxReader, check_boxes
from recombine.data.device import DeviceLoader
from recombine.data.fingerprint import label_of, record_split
from recombine.data.inspection import inspect
from recombine.data.loading import BatchLoader, Split
from recombine.data.masks import MaskReader, check_masks, stored_table
from recombine.data.pixels import Decoding, open_image
from recombine.data.settings import DatasetSettings, LoaderSettings, cores
from recombine.data.sources import source_of
from recombine.data.splits import EXCLUDED, UNLABELLED, Relabel, read_label_map, stratified, told_of
from recombine.data.storage import ArrayReader, SampleReader, Storage
from recombine.data.torch import TorchLoader

__all__ = ["Data", "open_data", "open_data_for"]

log = logging.getLogger(__name__)
RAW_UP_TO = 128  # pixels: a raw image of one size up to this is small enough to keep uncompressed
PROBES = 256
DENSE_TASKS = {MaskReader: "segmentation", BoxReader: "detection"}
DENSE = tuple(DENSE_TASKS)
_reported: set[str] = set()


class Data:
    """A data set with its splits; positions in a split never change, whatever subset is taken.

    name: str; classes: outputs a network needs; class_names: one per class; size: pixels if all images are stored at
    one square size, else None; splits: names that are there (train, test, and val if `val_fraction` > 0).
    """

    def __init__(
        self, settings: DatasetSettings, *, kind: str, workers: int, data_root, cache_root, run: tuple, path: str
    ) -> None:
        """`path`: where the settings are in the config, for messages."""
        self.settings, self._path = settings, path
        self._kind, self._workers = kind, workers
        self._seed, self._device, self._rank, self._world = run
        self._cache_root = Path(cache_root)
        folder = settings.folder or settings.name
        self.source = source_of(settings, Path(data_root), download=settings.download)
        self.decoding = Decoding(settings.background, settings.exif_orientation, self._pixel_range())
        self.name = label_of(settings, data_root, self.source)
        self._label_map = read_label_map(settings.label_map, Path(data_root) / folder)
        self._relabel = Relabel(self.source.class_names, self._label_map, settings.classes, settings.class_subset)
        self.classes, self.class_names = self._relabel.classes, self._relabel.names
        own = self.source.splits
        self.splits = (*own, *(["val"] if settings.val_fraction and "train" in own and "val" not in own else []))
        self._opened: dict[str, Split] = {}
        self._loaders: list[BatchLoader] = []

    def _pixel_range(self) -> tuple[float, float] | None:
        """Black and white of deep images; a folder of somebody's own is looked at first, file by file."""
        given = self.settings.pixel_range
        if self.source.is_own_folder:
            found = inspect(self.source, self._cache_root)
            if problems := found.problems():
                raise ConfigError(problems)
            if self._rank == 0 and str(self.source.place) not in _reported:
                _reported.add(str(self.source.place))
                log.info("%s: %s", self.settings.name, found.summary())
                for remark in found.remarks():
                    log.warning("%s: %s", self.settings.name, remark)
            return (given[0], given[1]) if given else found.pixel_range
        return (given[0], given[1]) if given else None

    def card(self) -> dict[str, Any]:
        """What a network that was trained on it has to know: its name, its classes, how its files become pixels."""
        return {"dataset": self.name, "class_names": list(self.class_names), "decoding": asdict(self.decoding)}

    def split(self, name: str) -> Split:
        """The stored split behind `name` (`val` may be a part of train). Raises ConfigError if there is none."""
        if name not in self.splits:
            raise ConfigError(f"{self.name} has no split {name}: it has {', '.join(self.splits)}")
        stored = name if name in self.source.splits else "train"
        if stored not in self._opened:
            samples = self.source.samples(stored)
            if not len(samples):
                raise ConfigError(f"{self.name}: no images of split {stored} in {self.source.place}")
            record_split(self.source, self.settings, stored, self._label_map)
            kind, size = "raw", None
            dense: dict[str, np.ndarray] = {}
            if isinstance(samples, MaskReader):
                dense["mask_table"] = stored_table(self._relabel.table)
                check_masks(samples, len(self.source.class_names), self.decoding, self._cache_root)
            elif isinstance(samples, BoxReader):
                dense["box_labels"] = self._relabel.table
                check_boxes(samples, self.decoding, self._cache_root)
            else:
                kind, size = _storage(samples, self.settings.storage)
            decoding = None if isinstance(samples, ArrayReader) else self.decoding
            is_dense = isinstance(samples, DENSE)
            storage = Storage(kind, None if size or is_dense else self.settings.max_side, decoding)
            place = self.source.place
            classes = len(self.source.class_names)
            betons = self._cache_root / "betons"
            name = self.settings.name
            self._opened[stored] = Split(name, stored, samples, storage, size, place, betons, classes, **dense)
            missing = int((samples.labels < 0).sum())
            if missing and stored == "train":
                log.warning("%s: %d of %d training images have no label", self.name, missing, len(samples))
            incomplete = self.source.partial(stored)
            if incomplete and incomplete not in _reported:
                _reported.add(incomplete)
                log.warning("%s: results are not those of the whole set", incomplete)
        return self._opened[stored]

    @cached_property
    def size(self) -> int | None:
        """Pixels if all images are stored at one square size, else None (read off the test split if there is one)."""
        return self.split("test" if "test" in self.splits else self.splits[0]).size

    @property
    def task(self) -> str:
        """segmentation: every pixel has a label; detection: objects have boxes with labels; else classification."""
        samples = self.source.samples(self.source.splits[0])
        return next((task for kind, task in DENSE_TASKS.items() if isinstance(samples, kind)), "classification")

    @property
    def device(self) -> torch.device:
        """Where batches come."""
        return self._device

    @property
    def labels_in_use(self) -> list[int]:
        """The labels that images may have: all, but with a label map those that it gives."""
        return sorted({int(label) for label in self._relabel.table if label >= 0})

    @property
    def partial(self) -> str | None:
        """Which of the splits opened so far are smaller than officially, in words; None if none is."""
        sentences = [self.source.partial(name) for name in self._opened]
        return "; ".join(sentence for sentence in sentences if sentence) or None

    def indices(self, split: str, *, unlabelled: bool = False) -> np.ndarray:
        """Positions of the samples in use, ascending int64: after class subset, val, fraction.

        Images without a label are among them only with `unlabelled`, and only for training.
        """
        with told_of(self._path):
            return self._in_use(split, unlabelled)

    def _in_use(self, split: str, unlabelled: bool) -> np.ndarray:
        labels, settings = self._labels(split), self.settings
        keep = np.flatnonzero(labels >= 0)
        if split == "test":
            return keep[_part(labels[keep], settings.test_fraction, settings.fraction_seed, "dataset.test_fraction")]
        if split == "val" and ("val" in self.source.splits or not len(keep)):
            return keep
        if settings.val_fraction and len(keep) and "val" not in self.source.splits:
            rest = stratified(labels[keep], settings.val_fraction, settings.fraction_seed, "dataset.val_fraction")
            if split == "val":
                return keep[rest[1]]
            keep = keep[rest[0]]
        if unlabelled:
            keep = np.union1d(keep, np.flatnonzero(labels == UNLABELLED))
        return keep[_part(labels[keep], settings.fraction, settings.fraction_seed, "dataset.fraction")]

    def labels(self, split: str) -> np.ndarray:
        """Labels int64 of `indices(split)`, in the same order; zeros where pixels or objects have labels."""
        return self._labels(split)[self.indices(split)]

    def _labels(self, split: str) -> np.ndarray:
        samples = self.split(split).samples
        return samples.labels if isinstance(samples, DENSE) else self._relabel(samples.labels)

    def loader(
        self,
        split: str,
        batch_size: int,
        *,
        train: bool,
        indices: Sequence[int] | np.ndarray | None = None,
        size: int | None = None,
        augment: bool | str | Sequence | None = None,
        even: bool = False,
    ) -> BatchLoader:
        """A loader of `split`, or of the positions `indices` of it.

        `batch_size` counts over all ranks. `size`: pixels of the square images, needed unless the set has one size.
        `even`: see `BatchLoader.even`.
        `augment`: None takes `dataset.augment` when training, False none, else a preset's name or a list of nodes.
        """
        stored = self.split(split)
        chosen = self.indices(split) if indices is None else np.sort(np.asarray(indices, np.int64))
        labels = self._labels(split)
        if len(chosen) and (chosen[0] < 0 or chosen[-1] >= len(labels) or (labels[chosen] == EXCLUDED).any()):
            raise ConfigError(f"indices of {self.name} {split} name samples that are not in use")
        side = stored.size or size
        if side is None:
            raise ConfigError(f"images of {self.name} differ in size: a loader needs size=<pixels>")
        nodes = (self.settings.augment if train else None) if augment is None or augment is True else augment
        steps = operations.build(nodes or None)
        augmentation = operations.Augment(steps, self._seed) if steps else None
        batches = {"batch_size": int(batch_size), "train": train, "size": int(side), "augment": augmentation}
        batches |= {"even": even}
        self._loaders.append(self._make({"split": stored, "indices": chosen, "labels": labels, **batches}))
        return self._loaders[-1]

    def _make(self, options: dict[str, Any]) -> BatchLoader:
        options |= {"seed": self._seed, "rank": self._rank, "world": self._world}
        options |= {"device": self._device, "workers": self._workers}
        squares = options["augment"] is not None and isinstance(options["augment"].crop, operations.RandomScaleCrop)
        plain = self._kind == "torch" or squares or options["split"].is_dense  # FFCV knows no padding
        filler = TorchLoader if plain else _ffcv_or_torch(self._kind)
        if options["split"].box_labels is not None and options["augment"] is not None:
            operations.refuse_moves(options["augment"])
        return DeviceLoader(**options, filler=filler) if self._kind == "device" else filler(**options)

    def close(self) -> None:
        """Close all loaders made here; may be called twice."""
        for loader in self._loaders:
            loader.close()
        self._loaders.clear()


def open_data(
    cfg_dataset: Mapping,
    *,
    loader: Mapping,
    data_root,
    cache_root,
    seed: int,
    device,
    rank: int = 0,
    world: int = 1,
    path: str = "dataset",
) -> Data:
    """Open the data set of the node at `path` of a config with the loader of a `loader` node {kind, workers}.

    Nothing is decoded or written before the first batch is read. Raises ConfigError.
    """
    settings = DatasetSettings.of(cfg_dataset, path)
    chosen = LoaderSettings.of(loader, "loader")
    run = (int(seed), torch.device(device), rank, world)
    workers = cores() if chosen.workers == "auto" else chosen.workers
    roots = {"data_root": data_root, "cache_root": cache_root}
    with told_of(path):
        return Data(settings, kind=chosen.kind, workers=workers, **roots, run=run, path=path)


def open_data_for(cfg, run) -> Data:
    """`open_data` with everything taken from a run's config and the run."""
    roots = {"data_root": cfg.data_root, "cache_root": cfg.cache_root}
    where = {"seed": run.seed, "device": run.device, "rank": run.rank, "world": run.world}
    return open_data(cfg.dataset, loader=cfg.loader, **roots, **where)


def _ffcv_or_torch(kind: str) -> type[BatchLoader]:
    try:
        return import_module("recombine.data.ffcv").FFCVLoader
    except (ImportError, OSError) as error:  # not installed, or its system libraries are not
        if kind == "ffcv" and "ffcv" not in _reported:
            _reported.add("ffcv")
            reason = "the torch loader gives the same batches, slower; bash scripts/setup.sh builds FFCV"
            log.warning("FFCV does not load (%s): %s", error, reason)
        return TorchLoader


def _part(labels: np.ndarray, fraction: float, seed: int, name: str) -> np.ndarray:
    return np.arange(len(labels)) if fraction == 1 else stratified(labels, fraction, seed, name)[1]


def _storage(samples: SampleReader, storage: str) -> tuple[str, int | None]:
    """(raw or jpeg, the one square size or None), judged by up to 256 images spread over the split."""
    probes = np.unique(np.linspace(0, len(samples) - 1, PROBES).astype(int))
    sizes = {_size(samples[i], samples.where(i)) for i in probes}
    width, height = next(iter(sizes))
    one = len(sizes) == 1 and width == height <= RAW_UP_TO and storage != "jpeg"
    kind = storage if storage != "auto" else ("raw" if one else "jpeg")
    return kind, width if one else None


def _size(item: np.ndarray | bytes, where: str) -> tuple[int, int]:
    if isinstance(item, np.ndarray):
        return item.shape[1], item.shape[0]
    return open_image(item, where).size  # as it lies in the file: turned or not, a square is one
