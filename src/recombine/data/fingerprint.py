"""Whether a data set is still what a run read: names, sizes, labels and classes of all images, contents of some.

A copy of a data set has other times and is the same data; a retouched image has another time and mostly another size.
So times are only looked at to know whether contents have to be: those of `SAMPLED` images, spread over the split.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from recombine.core.errors import ConfigError
from recombine.core.inputs import record, register_check
from recombine.core.labels import OWN_FOLDERS
from recombine.data.boxes import BoxReader
from recombine.data.masks import MaskReader
from recombine.data.settings import DatasetSettings
from recombine.data.sources import Source, source_of
from recombine.data.splits import read_label_map
from recombine.data.storage import FileReader, ParquetReader

if TYPE_CHECKING:
    from recombine.data.storage import SampleReader

__all__ = ["fingerprint", "label_for", "label_of", "record_split"]

_fingerprints: dict[str, str] = {}
SAMPLED = 256
"""FileReader of a split whose contents are compared; of smaller splits all."""


def listing(samples: SampleReader, classes: Sequence[str], label_map: Any) -> str:
    """Digest of names, sizes and labels of a split, of its classes and its label map; no image is read."""
    digest = hashlib.blake2b(json.dumps(list(classes)).encode(), digest_size=16)
    digest.update(json.dumps(label_map).encode() if label_map is not None else b"")
    digest.update(samples.labels.tobytes())
    paths, root = _files(samples)
    if not paths:
        digest.update(samples.identity.encode())
    for path in paths:
        digest.update(os.fsencode(os.path.relpath(path, root)) + f"\0{os.stat(path).st_size}\n".encode())
    return digest.hexdigest()


def fingerprint(samples: SampleReader, classes: Sequence[str], label_map: Any) -> str:
    """Digest of `listing` and of the contents of `SAMPLED` files."""
    digest = hashlib.blake2b(listing(samples, classes, label_map).encode(), digest_size=16)
    paths, _ = _files(samples)
    for place in np.unique(np.linspace(0, len(paths) - 1, SAMPLED).astype(int)) if paths else ():
        with open(paths[place], "rb") as file:
            digest.update(file.read(1 << 20))
    return digest.hexdigest()


def label_of(settings: DatasetSettings, data_root: str | Path, source: Source | None = None) -> str:
    """How rows and files call a data set: its name, and for a folder, which others may call so too, a fingerprint of
    its classes and of the names and sizes of its images.

    `source`: the set as it was just opened; without, as it was when it was last opened in this process.
    """
    if settings.reader is not None or (settings.source or settings.name) not in OWN_FOLDERS:
        return settings.name
    key = str(Path(data_root).absolute() / (settings.folder or settings.name))
    try:
        if source is not None or key not in _fingerprints:
            found = source or source_of(settings, Path(data_root))
            parts = [f"{split} {listing(found.samples(split), found.class_names, None)}" for split in found.splits]
            _fingerprints[key] = hashlib.blake2b(" ".join(parts).encode(), digest_size=4).hexdigest()
    except (ConfigError, OSError):
        return settings.name
    return f"{settings.name}-{_fingerprints[key]}"


def label_for(cfg) -> str:
    """`label_of` the data set of a config."""
    return label_of(DatasetSettings.of(cfg.dataset, "dataset"), cfg.data_root)


def times(samples: SampleReader) -> str:
    """Digest of when the files of a split were written."""
    paths, _ = _files(samples)
    return hashlib.blake2b(np.array([os.stat(path).st_mtime_ns for path in paths]).tobytes(), digest_size=8).hexdigest()


def _files(samples: SampleReader) -> tuple[Sequence[str | Path], Path]:
    if isinstance(samples, MaskReader):
        return [*samples.paths, *samples.masks], samples.root
    if isinstance(samples, BoxReader):
        return [*samples.paths, *samples.files], samples.root
    if isinstance(samples, FileReader):
        return samples.paths, samples.root
    if isinstance(samples, ParquetReader):
        return samples.shards, samples.shards[0].parent
    return (), Path()


def record_split(source: Source, settings: DatasetSettings, split: str, label_map: Any) -> None:
    """Note a split that a run has opened."""
    samples, classes = source.samples(split), source.class_names
    details = {"split": split, "settings": settings.model_dump(exclude_unset=True)}
    details |= {"times": times(samples), "listing": listing(samples, classes, label_map)}
    record("data", f"{settings.name}/{split}", fingerprint(samples, classes, label_map), **details)


def _now(entry: Mapping[str, Any], roots: Mapping[str, Path]) -> str | None:
    """The fingerprint of a noted split as it is today; None if it is not there."""
    settings, root = DatasetSettings.of(entry["settings"]), roots["data_root"]
    folder = root / (settings.folder or settings.name)
    try:
        label_map = read_label_map(settings.label_map, folder)
        source = source_of(settings, root)
        samples, classes = source.samples(entry["split"]), source.class_names
        if (times(samples), listing(samples, classes, label_map)) == (entry["times"], entry["listing"]):
            return str(entry["digest"])
        return fingerprint(samples, classes, label_map)
    except (ConfigError, KeyError, OSError):
        return None


register_check("data", _now)
