"""The data sets known by name: how to find them on disk, how to get them, how many images they officially have."""

from __future__ import annotations

import fcntl
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

from recombine.core.errors import ConfigError, did_you_mean
from recombine.data import layouts
from recombine.data.layouts import SourceSplits
from recombine.data.parquet import parquet

__all__ = ["DATASETS", "DatasetInfo", "Source", "locate", "open_source", "problems", "splits_of"]


Options = dict[str, Any]
"""Arguments of a torchvision data set that choose a split."""
Splits = tuple[Options, ...]


@dataclass(frozen=True)
class DatasetInfo:
    """A named set. `layouts` maps a path whose presence means "here it is" to the reader of the folder around it."""

    classes: int | None = None
    train: int | None = None
    test: int | None = None
    layouts: Mapping[str, Callable[[Path], SourceSplits]] = field(default_factory=dict)
    around: int = 1
    """How many folders above the path found the reader starts."""
    names: Sequence[str] = ()
    download: tuple[str, Splits] | None = None
    """torchvision class and the options of each split, for downloading."""
    put: str = ""
    """What to put where when it is absent."""


def _arrays(kind: str, path: str, classes: int, train: int, test: int, splits: Splits, **more: Any) -> DatasetInfo:
    """A torchvision data set that holds its images as one array; `splits` are its options for train and test."""
    reader = partial(layouts.torchvision_arrays, kind=kind, train=splits[0], test=splits[1])
    put = f"torchvision's {kind} files ({path})"
    return DatasetInfo(classes, train, test, {path: reader}, download=(kind, splits), put=put, **more)


def _files(
    kind: str,
    path: str,
    classes: int,
    train: int,
    test: int,
    splits: Sequence[Sequence[Options]],
    *,
    fetch: bool = True,
    around: int = 1,
) -> DatasetInfo:
    """A torchvision data set of image files; several options of a split are put one after the other."""
    reader = partial(layouts.torchvision_files, kind=kind, train=list(splits[0]), test=list(splits[1]))
    download = (kind, (*splits[0], *splits[1])) if fetch else None
    put = f"torchvision's {kind} files ({path})"
    return DatasetInfo(classes, train, test, {path: reader}, around=around, download=download, put=put)


def _unsplit(classes: int, images: int, **more: Any) -> DatasetInfo:
    """A set without an official split: one sixth is held out for testing."""
    test = math.ceil(images / 6)
    return DatasetInfo(classes, images - test, test, **more)


_MNIST: Splits = ({"train": True}, {"train": False})
_SPLIT: Splits = ({"split": "train"}, {"split": "test"})
_TRAINVAL = [{"split": "train"}, {"split": "val"}], [{"split": "test"}]
_CLOTHES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
_STL = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")

DATASETS: dict[str, DatasetInfo] = {
    "digits": DatasetInfo(10, 1497, 300),
    "fake": DatasetInfo(),
    "folder": DatasetInfo(put="class folders with images, or train/ and test/ with class folders"),
    "parquet": DatasetInfo(put="train-*.parquet and test-*.parquet with columns image{bytes,path} and label"),
    "mnist": DatasetInfo(
        *(10, 60000, 10000),
        layouts={"MNIST/raw": layouts.idx},
        around=0,
        download=("MNIST", _MNIST),
        put="MNIST/raw/*.gz",
    ),
    "fashion_mnist": DatasetInfo(
        *(10, 60000, 10000),
        layouts={"FashionMNIST/raw": layouts.idx},
        around=0,
        names=_CLOTHES,
        download=("FashionMNIST", _MNIST),
        put="FashionMNIST/raw/*.gz",
    ),
    "cifar10": _arrays("CIFAR10", "cifar-10-batches-py", 10, 50000, 10000, _MNIST),
    "cifar100": _arrays("CIFAR100", "cifar-100-python", 100, 50000, 10000, _MNIST),
    "svhn": _arrays("SVHN", "train_32x32.mat", 10, 73257, 26032, _SPLIT),
    "stl10": _arrays("STL10", "stl10_binary", 10, 5000, 8000, _SPLIT, names=_STL),
    "usps": _arrays("USPS", "usps.bz2", 10, 7291, 2007, _MNIST),
    "tiny_imagenet": DatasetInfo(
        *(200, 100000, 10000),
        layouts={"tiny-imagenet-200/wnids.txt": layouts.tiny_imagenet, "wnids.txt": layouts.tiny_imagenet},
        put="tiny-imagenet-200/ as in tiny-imagenet-200.zip of cs231n.stanford.edu",
    ),
    "imagenet": DatasetInfo(
        *(1000, 1281167, 50000),
        layouts={"train/n01440764": layouts.tree, "val/n01440764": layouts.tree},
        around=2,
        put="the folders train/<wnid>/ and val/<wnid>/ (1,000 wnid folders each)",
    ),
    "flowers102": _files("Flowers102", "flowers-102", 102, 2040, 6149, _TRAINVAL),
    "fgvc_aircraft": _files(
        *("FGVCAircraft", "fgvc-aircraft-2013b", 100, 6667, 3333), ([{"split": "trainval"}], [{"split": "test"}])
    ),
    "stanford_cars": _files(
        *("StanfordCars", "stanford_cars/devkit", 196, 8144, 8041), ([_SPLIT[0]], [_SPLIT[1]]), fetch=False, around=2
    ),
    "dtd": _files("DTD", "dtd/dtd", 47, 3760, 1880, _TRAINVAL, around=2),
    "gtsrb": _files("GTSRB", "gtsrb/GTSRB", 43, 26640, 12630, ([_SPLIT[0]], [_SPLIT[1]]), around=2),
    "resisc45": _unsplit(
        45, 31500, layouts={"NWPU-RESISC45/airplane": layouts.tree}, put="NWPU-RESISC45/<class>/*.jpg"
    ),
    "ucf101": DatasetInfo(
        *(101, 9537, 3783),
        layouts={"ApplyEyeMakeup": layouts.ucf},
        put="<class>/v_<class>_g<group>_c<clip>.jpg, the middle frame of each video",
    ),
    "omniglot": _unsplit(
        *(1623, 32460),
        layouts={"images_background*": layouts.omniglot, "omniglot-py/images_background*": layouts.omniglot},
        download=("Omniglot", ({"background": True}, {"background": False})),
        put="images_background.zip and images_evaluation.zip",
    ),
    "cub": DatasetInfo(
        *(200, 5994, 5794),
        layouts={"CUB_200_2011/images.txt": layouts.cub, "images.txt": layouts.cub},
        put="CUB_200_2011/ as in CUB_200_2011.tgz",
    ),
    "caltech256": _unsplit(
        *(257, 30607),
        layouts={"caltech256/256_ObjectCategories": layouts.tree},
        around=0,
        download=("Caltech256", ({},)),
        put="caltech256/256_ObjectCategories/<class>/*.jpg",
    ),
    "caltech101": _unsplit(
        *(101, 8677),
        layouts={"caltech101/101_ObjectCategories": partial(layouts.tree, skip=("BACKGROUND_Google",))},
        around=0,
        download=("Caltech101", ({},)),
        put="caltech101/101_ObjectCategories/<class>/*.jpg",
    ),
    "infograph": DatasetInfo(
        *(345, 36023, 15582),
        layouts={"infograph_train.txt": partial(layouts.domain, name="infograph")},
        put="DomainNet's infograph/, infograph_train.txt and infograph_test.txt",
    ),
    "voc": DatasetInfo(
        classes=20,
        layouts={"VOCdevkit/VOC2007": layouts.voc},
        around=0,
        names=layouts.VOC_CLASSES,
        download=("VOCDetection", tuple({"year": "2007", "image_set": part} for part in ("trainval", "test"))),
        put="VOCdevkit/VOC2007/ with Annotations, ImageSets/Main, JPEGImages",
    ),
}


class Source:
    """A set that was found: its splits are read when first used."""

    def __init__(self, name: str, known: DatasetInfo, place: Path, found: SourceSplits) -> None:
        self.name, self.known, self.place, self._found = name, known, place, found
        self.samples = cache(lambda split: self._found.splits[split]())

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits that are there."""
        return tuple(self._found.splits)

    @property
    def class_names(self) -> list[str]:
        """One name per stored label; numbers where the source names none."""
        names = list(self._found.class_names or self.known.names)
        if names:
            return names
        count = self.known.classes or 1 + max(int(self.samples(split).labels.max()) for split in self.splits)
        return [str(i) for i in range(count)]

    def partial(self, split: str) -> str | None:
        """A sentence if the split has fewer images than officially, else None."""
        official = {"train": self.known.train, "test": self.known.test}.get(split)
        have, names = len(self.samples(split)), len(self.class_names)
        if official is None or have == official:
            return None
        of_classes = f" ({names} of {self.known.classes} classes)" if names != self.known.classes else ""
        return f"{self.name}: {split} has {have:,} of {official:,} images{of_classes}"


def locate(name: str, folder: str, data_root: Path) -> tuple[Callable[[Path], SourceSplits], Path] | None:
    """The reader and folder of a set under `data_root/folder` or `data_root`, or None; looks at names only."""
    known, inside = DATASETS[name], data_root / folder
    for base in (inside, data_root):
        for pattern, reader in known.layouts.items():
            for path in sorted(base.glob(pattern)):
                return reader, path if known.around == 0 else path.parents[known.around - 1]
    if name != "folder" and next(inside.rglob("*.parquet"), None):
        return parquet, inside
    by_class = inside.is_dir() and any(path.is_dir() and _has_images(path) for path in inside.iterdir())
    if name not in ("parquet", "voc") and by_class:
        return layouts.ucf if name == "ucf101" else layouts.tree, inside
    return None


def _has_images(folder: Path) -> bool:
    for depth, (_, _, files) in enumerate(os.walk(folder)):
        if any(file.lower().endswith(layouts.IMAGES) for file in files):
            return True
        if depth > 20:
            return False
    return False


def problems(name: str, folder: str, data_root: Path, download: bool) -> list[str]:
    """Why this set cannot be opened, as messages; empty if it can (or can be downloaded)."""
    if name not in DATASETS:
        return [f"dataset.source={name} is unknown; {did_you_mean(name, DATASETS)}"]
    if name in ("digits", "fake") or locate(name, folder, data_root):
        return []
    if DATASETS[name].download and download:
        parent = next(path for path in (data_root, *data_root.absolute().parents) if path.exists())
        if os.access(parent, os.W_OK):
            return []
    return [_absent(name, folder, data_root, "" if download else ", or let it be fetched: dataset.download=true")]


def _absent(name: str, folder: str, data_root: Path, more: str) -> str:
    need = DATASETS[name].put
    if name not in ("folder", "parquet"):
        need += ", or parquet shards, or train/ and test/ class folders"
    places = " or ".join(dict.fromkeys(map(str, (data_root / folder, data_root))))
    return f"{name}: nothing found in {places}; put there {need} (or data_root=...){more}"


def splits_of(name: str, folder: str, data_root: Path) -> tuple[str, ...]:
    """The splits of a set that `problems` finds nothing wrong with, read off names; nothing is fetched."""
    found = None if name in ("digits", "fake") else locate(name, folder, data_root)
    return tuple(found[0](found[1]).splits) if found else ("train", "test")


def open_source(name: str, folder: str, data_root: Path, download: bool, **fake: int) -> Source:
    """Find a set, fetch it through torchvision if it is absent and may be, and return it.

    Raises ConfigError that says what to put where.
    """
    wrong = problems(name, folder, data_root, download)
    if wrong:
        raise ConfigError(wrong)
    known, data_root = DATASETS[name], data_root.absolute()
    if name == "digits":
        return Source(name, known, Path("scikit-learn"), layouts.digits())
    if name == "fake":
        return Source(name, known, Path("generated", *map(str, fake.values())), layouts.fake(**fake))
    if locate(name, folder, data_root) is None:
        _download(name, folder, data_root)
    located = locate(name, folder, data_root)
    assert located is not None, f"{name} is there"
    reader, place = located
    found = reader(place)
    if known.classes and found.class_names and len(found.class_names) > known.classes:
        raise ConfigError(
            f"{name} has {known.classes} classes but {place} holds {len(found.class_names)}: dataset.folder=..."
        )
    return Source(name, known, place, found)


def _download(name: str, folder: str, data_root: Path) -> None:
    from torchvision import datasets

    download = DATASETS[name].download
    assert download is not None, f"{name} cannot be fetched"
    kind, options = download
    data_root.mkdir(parents=True, exist_ok=True)
    with open(data_root / ".download.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one rank fetches, the others find it
        if locate(name, folder, data_root):
            return
        try:
            for split in options:
                getattr(datasets, kind)(str(data_root), download=True, **split)
        except Exception as error:  # urllib, gdown, archives and checksums fail with many types
            raise ConfigError(_absent(name, folder, data_root, f"; downloading failed: {error}")) from error
    if locate(name, folder, data_root) is None:
        raise ConfigError(_absent(name, folder, data_root, "; the download has other files"))
