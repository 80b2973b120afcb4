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
from recombine.data.own_reader import open_own
from recombine.data.settings import DatasetSettings
from recombine.data.sources import Source, open_source
from recombine.data.storage import FileReader, ParquetReader

if TYPE_CHECKING:
    from recombine.data.storage import SampleReader

__all__ = ["fingerprint", "record_split"]

SAMPLED = 256
"""FileReader of a split whose contents are compared; of smaller splits all."""


def listing(samples: SampleReader, classes: Sequence[str], label_map: Path | None) -> str:
    """Digest of names, sizes and labels of a split, of its classes and its label map; no image is read."""
    digest = hashlib.blake2b(json.dumps(list(classes)).encode(), digest_size=16)
    digest.update(label_map.read_bytes() if label_map else b"")
    digest.update(samples.labels.tobytes())
    paths, root = _files(samples)
    if not paths:
        digest.update(samples.identity.encode())
    for path in paths:
        digest.update(f"{os.path.relpath(path, root)}\0{os.stat(path).st_size}\n".encode())
    return digest.hexdigest()


def fingerprint(samples: SampleReader, classes: Sequence[str], label_map: Path | None) -> str:
    """Digest of `listing` and of the contents of `SAMPLED` files."""
    digest = hashlib.blake2b(listing(samples, classes, label_map).encode(), digest_size=16)
    paths, _ = _files(samples)
    for place in np.unique(np.linspace(0, len(paths) - 1, SAMPLED).astype(int)) if paths else ():
        with open(paths[place], "rb") as file:
            digest.update(file.read(1 << 20))
    return digest.hexdigest()


def times(samples: SampleReader) -> str:
    """Digest of when the files of a split were written."""
    paths, _ = _files(samples)
    return hashlib.blake2b(np.array([os.stat(path).st_mtime_ns for path in paths]).tobytes(), digest_size=8).hexdigest()


def _files(samples: SampleReader) -> tuple[Sequence[str | Path], Path]:
    if isinstance(samples, FileReader):
        return samples.paths, samples.root
    if isinstance(samples, ParquetReader):
        return samples.shards, samples.shards[0].parent
    return (), Path()


def record_split(source: Source, settings: DatasetSettings, split: str, label_map: Path | None) -> None:
    """Note a split that a run has opened."""
    samples, classes = source.samples(split), source.class_names
    details = {"split": split, "settings": settings.model_dump(exclude_unset=True)}
    details |= {"times": times(samples), "listing": listing(samples, classes, label_map)}
    record("data", f"{settings.name}/{split}", fingerprint(samples, classes, label_map), **details)


def _now(entry: Mapping[str, Any], roots: Mapping[str, Path]) -> str | None:
    """The fingerprint of a noted split as it is today; None if it is not there."""
    settings, root = DatasetSettings.of(entry["settings"]), roots["data_root"]
    folder = root / (settings.folder or settings.name)
    label_map = folder / settings.label_map if settings.label_map else None
    try:
        source = _opened(settings, root)
        samples, classes = source.samples(entry["split"]), source.class_names
        if (times(samples), listing(samples, classes, label_map)) == (entry["times"], entry["listing"]):
            return str(entry["digest"])
        return fingerprint(samples, classes, label_map)
    except (ConfigError, KeyError, OSError):
        return None


def _opened(settings: DatasetSettings, root: Path) -> Source:
    folder = settings.folder or settings.name
    if settings.reader is not None:
        return open_own(settings.name, settings.reader, root / folder)
    made = {"samples": settings.samples, "size": settings.image_size, "classes": settings.classes or 10}
    return open_source(settings.source or settings.name, folder, root, False, **made)


register_check("data", _now)
