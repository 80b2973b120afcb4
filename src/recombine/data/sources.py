"""Finding the data sets known by name on disk, fetching them, opening them."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

from recombine.core.builds import load_target
from recombine.core.errors import ConfigError, did_you_mean
from recombine.data import layouts
from recombine.data.known import DATASETS, DatasetInfo
from recombine.data.parquet import parquet
from recombine.data.settings import DatasetSettings
from recombine.data.storage import SourceSplits
from recombine.data.tree import has_images, tree

__all__ = ["DATASETS", "Source", "locate", "open_source", "problems", "source_of", "splits_of"]


class Source:
    """A set that was found: its splits are read when first used."""

    def __init__(self, name: str, known: DatasetInfo, place: Path, found: SourceSplits) -> None:
        self.name, self.known, self.place, self._found = name, known, place, found
        self.samples = cache(lambda split: self._found.splits[split]())

    @property
    def is_own_folder(self) -> bool:
        """Whether it is a folder of images that nobody else has by this name."""
        return self.name == "folder"

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
    if known.task != "classification":
        return None
    if name != "folder" and next(inside.rglob("*.parquet"), None):
        return parquet, inside
    by_class = inside.is_dir() and any(path.is_dir() and has_images(path) for path in inside.iterdir())
    if name not in ("parquet", "voc") and by_class:
        return layouts.ucf if name == "ucf101" else tree, inside
    return None


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
    fetch = ", or let it be fetched: dataset.download=true" if DATASETS[name].download and not download else ""
    return [_absent(name, folder, data_root, fetch)]


def _absent(name: str, folder: str, data_root: Path, more: str) -> str:
    need = DATASETS[name].put
    if name not in ("folder", "parquet") and DATASETS[name].task == "classification":
        need += ", or parquet shards, or train/ and test/ class folders"
    places = " or ".join(dict.fromkeys(map(str, (data_root / folder, data_root))))
    return f"{name}: nothing found in {places}; put there {need} (or data_root=...){more}"


def splits_of(name: str, folder: str, data_root: Path) -> tuple[str, ...]:
    """The splits of a set that `problems` finds nothing wrong with, read off names; nothing is fetched."""
    found = None if name in ("digits", "fake") else locate(name, folder, data_root)
    return tuple(found[0](found[1]).splits) if found else ("train", "test")


def source_of(settings: DatasetSettings, data_root: Path, *, download: bool = False) -> Source:
    """The set that a `dataset` node means; ConfigError if it is not there."""
    folder = settings.folder or settings.name
    if settings.reader is None:
        made = {"samples": settings.samples, "size": settings.image_size, "classes": settings.classes or 10}
        return open_source(settings.source or settings.name, folder, data_root, download, **made)
    node = settings.reader
    options = {key: value for key, value in node.items() if key != "_target_"}
    found = load_target("dataset.reader", node["_target_"])(folder=data_root / folder, **options)
    # stored sets are found by their place: that of another reader, or of other options, is another one
    return Source(settings.name, DatasetInfo(), data_root / folder / "-".join(map(str, node.values())), found)


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
