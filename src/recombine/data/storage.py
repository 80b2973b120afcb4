"""Collections of labelled images as they lie on disk or in memory; decoding happens as late as possible."""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np

from recombine.core.errors import ConfigError
from recombine.data.pixels import Decoding, decode, open_image, orientation, shown
from recombine.data.splits import UNLABELLED

__all__ = ["IMAGES", "ArrayReader", "BytesReader", "FileReader", "ParquetReader", "SampleReader", "SourceSplits"]
__all__ += ["Storage", "identity_of_files", "stored"]

IMAGES = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".gif")
"""How the names of image files end."""

PARQUET_MEMORY = 4 << 30  # bytes of image data kept open; larger sets are read shard by shard


class SampleReader(Protocol):
    """The images of one split in their fixed order."""

    @property
    def labels(self) -> np.ndarray:
        """int64 [N], as the source numbers its classes."""
        ...

    @property
    def identity(self) -> str:
        """Changes when the files do."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> np.ndarray | bytes:
        """Pixels (uint8 [H, W] or [H, W, 3]) or the bytes of an image file."""
        ...

    def where(self, i: int) -> str:
        """Name of sample `i` for messages."""
        ...


class SourceSplits(NamedTuple):
    """The splits of a source by name, and its class names in label order."""

    splits: Mapping[str, Callable[[], SampleReader]]
    class_names: Sequence[str]


class ArrayReader:
    """Images in memory: uint8 [N, H, W] or [N, H, W, 3]."""

    def __init__(self, images: np.ndarray, labels: Sequence[int] | np.ndarray) -> None:
        self.images = np.ascontiguousarray(images)
        self.labels = np.asarray(labels, np.int64)
        digest = hashlib.blake2b(self.images.data, digest_size=16)
        digest.update(self.labels.tobytes())
        self.identity = digest.hexdigest()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> np.ndarray:
        return self.images[i]

    def where(self, i: int) -> str:
        return f"image {i}"


class BytesReader:
    """Encoded images in memory."""

    def __init__(
        self, images: Sequence[bytes], labels: Sequence[int] | np.ndarray, names: Sequence[str], identity: str
    ) -> None:
        self.images, self.names, self.identity = images, names, identity
        self.labels = np.asarray(labels, np.int64)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> bytes:
        return self.images[i]

    def where(self, i: int) -> str:
        return self.names[i]

    def take(self, index: np.ndarray) -> BytesReader:
        """The same collection with only these positions."""
        chosen = [self.images[i] for i in index], self.labels[index], [self.names[i] for i in index]
        return BytesReader(*chosen, self.identity)


class FileReader:
    """Image files on disk."""

    def __init__(self, paths: Sequence[str | Path], labels: Sequence[int] | np.ndarray, root: Path) -> None:
        self.paths = [str(path) for path in paths]
        self.labels = np.asarray(labels, np.int64)
        self.root = root

    @property
    def identity(self) -> str:
        """Names, sizes and times of all files and their labels."""
        return identity_of_files(self.paths, self.root, self.labels.tobytes())

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> bytes:
        try:
            return Path(self.paths[i]).read_bytes()
        except OSError as error:
            raise ConfigError(f"{self.where(i)} cannot be read: {error.strerror}") from error

    def where(self, i: int) -> str:
        return shown(self.paths[i])

    def take(self, index: np.ndarray) -> FileReader:
        """The same collection with only these positions."""
        return FileReader([self.paths[i] for i in index], self.labels[index], self.root)


class ParquetReader:
    """Encoded images in the rows of parquet shards (Hugging Face layout: image{bytes, path} and a label).

    Shards are read whole; while they are larger than 4 GiB together only the latest ones stay in memory, so reading
    in order is cheap at any size and random access is meant for sets that fit.
    """

    def __init__(self, shards: Sequence[Path], image: str, label: str) -> None:
        import pyarrow.parquet as pq

        self.shards, self.image = list(shards), image
        tables = [pq.read_table(path, columns=[label]) for path in self.shards]
        self.labels = np.concatenate([table[label].fill_null(UNLABELLED).to_numpy() for table in tables]).astype(
            np.int64
        )
        self.ends = np.cumsum([len(table) for table in tables])
        self.identity = identity_of_files(self.shards, self.shards[0].parent, b"")
        largest = max(path.stat().st_size for path in self.shards)
        self.keep = max(1, PARQUET_MEMORY // largest)
        self.open: OrderedDict[int, Any] = OrderedDict()

    def __len__(self) -> int:
        return len(self.labels)

    def _row(self, i: int) -> dict[str, Any]:
        import pyarrow.parquet as pq

        shard = int(np.searchsorted(self.ends, i, side="right"))
        if shard not in self.open:
            self.open[shard] = pq.read_table(self.shards[shard], columns=[self.image])[self.image].combine_chunks()
            while len(self.open) > self.keep:
                self.open.popitem(last=False)
        return self.open[shard][i - (int(self.ends[shard - 1]) if shard else 0)].as_py()

    def __getitem__(self, i: int) -> bytes:
        row = self._row(i)
        if row is None or row["bytes"] is None:
            raise ConfigError(f"{self.where(i)} holds no image bytes, only the path of a file that is not part of it")
        return row["bytes"]

    def where(self, i: int) -> str:
        return f"row {i} of {self.shards[0].parent}"


def identity_of_files(paths: Iterable[str | Path], root: Path, extra: bytes) -> str:
    """Digest of names (relative to `root`), sizes and modification times."""
    digest = hashlib.blake2b(extra, digest_size=16)
    for path in paths:
        status = os.stat(path) if os.path.exists(path) else os.lstat(path)  # a broken link is named when it is read
        digest.update(os.fsencode(os.path.relpath(path, root)))
        digest.update(f"\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


class Storage:
    """How an image is kept: raw pixels, or JPEG bytes (the original ones where the source is a plain JPEG).

    raw: lossless pixels. jpeg: original bytes, or quality 95 for what is no JPEG, larger than `max_side` pixels or to
    be turned. Every loader sees what `stored` returns, so the choice of loader never changes a pixel.
    """

    QUALITY = 95

    def __init__(self, kind: str, max_side: int | None, decoding: Decoding | None = None) -> None:
        """`decoding`: of image files; None for pixels that need none."""
        self.kind, self.max_side, self.decoding = kind, max_side, decoding

    def __str__(self) -> str:
        side = f"-{self.max_side}" if self.max_side else ""
        quality = f"-q{self.QUALITY}" if self.kind == "jpeg" else ""
        return self.kind + side + quality + (f"-{self.decoding}" if self.decoding else "")

    def decode(self, item: np.ndarray | bytes, where: str) -> np.ndarray:
        """RGB pixels of a sample, or of what is stored of it; ConfigError naming it if it is no whole image."""
        return decode(item, where, self.decoding or Decoding())


def stored(item: np.ndarray | bytes, where: str, storage: Storage) -> np.ndarray | bytes:
    """What the beton holds for a sample: RGB pixels (raw) or JPEG bytes that decode to RGB."""
    if storage.kind == "jpeg" and isinstance(item, bytes) and _is_plain_jpeg(item, where, storage):
        return item
    image = storage.decode(item, where)
    side = max(image.shape[:2])
    if storage.max_side and side > storage.max_side:
        size = [max(1, round(length * storage.max_side / side)) for length in image.shape[1::-1]]
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    if storage.kind == "raw":
        return image
    done, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, storage.QUALITY])
    if not done:
        raise ConfigError(f"{where} cannot be written as JPEG: dataset.storage=raw")
    return data.tobytes()


def _is_plain_jpeg(item: bytes, where: str, storage: Storage) -> bool:
    """Whether libjpeg's RGB decoder can take the bytes as they are: whole, not CMYK, not too large, not turned."""
    if item[:3] != b"\xff\xd8\xff" or b"\xff\xd9" not in item[-64:]:
        return False
    image = open_image(item, where)
    turned = storage.decoding is not None and storage.decoding.exif_orientation and orientation(image) != 1
    fits = max(image.size) <= (storage.max_side or 65535)
    return image.format == "JPEG" and image.mode in ("RGB", "L") and fits and not turned
