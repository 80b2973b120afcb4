"""Writing a split as a .beton with a manifest, and refusing one that is truncated, stale or not what it says."""

from __future__ import annotations

import fcntl
import hashlib
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from recombine.core.console import track
from recombine.core.errors import ConfigError, DamagedError, WriteError
from recombine.core.files import read_json, replacing, write_json, writing
from recombine.core.inputs import file_digest, file_stamp
from recombine.data.loading import Split
from recombine.data.settings import cores
from recombine.data.storage import stored
from recombine.data.threads import keep_torch_threads

with keep_torch_threads():
    from ffcv.fields import IntField, RGBImageField
    from ffcv.fields.rgb_image import IMAGE_MODES
    from ffcv.memory_allocator import MemoryAllocator
    from ffcv.reader import Reader
    from ffcv.writer import DatasetWriter, handle_sample

__all__ = ["beton_path", "ensure", "manifest_of", "wrong"]

FORMAT = 2
CHUNK = 1024
SMALL_PAGE, PAGE = 1 << 21, 1 << 23  # bytes; FFCV pads a file to whole pages
logger = logging.getLogger(__name__)


def beton_path(split: Split) -> Path:
    """Where the split's beton lies: one file per source folder and storage."""
    source = hashlib.blake2b(str(split.place).encode(), digest_size=4).hexdigest()
    return split.betons / f"{split.dataset}-{split.name}-{split.storage}-{source}.beton"


def ensure(split: Split, *, rewrite: bool = False) -> Path:
    """The beton of a split, whole and made from the source as it is now; safe when several processes call it at once.

    One that is absent, damaged or stale is written; WriteError if the disk does not take it.
    """
    path = beton_path(split)
    if rewrite or wrong(split, path):
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        with open(path.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            problem = wrong(split, path)  # another process may have written it meanwhile
            if path.exists() and problem:
                logger.warning("%s %s; it is written again", path, problem)
            if rewrite or problem:
                _write(split, path)
    return path


def wrong(split: Split, path: Path) -> str | None:
    """Why the file is not whole, not made from the source as it is now, or has other labels; None if it is right.

    All of its bytes are read where its size, time or inode is not the one that was noted.
    """
    if not path.exists():
        return "is not there"
    manifest = manifest_of(path)
    if manifest is None or manifest.get("format") != FORMAT:
        return "has no readable manifest beside it"
    size = path.stat().st_size
    if size != manifest["bytes"]:
        return f"is {'truncated' if size < manifest['bytes'] else 'damaged'}: {size:,} of {manifest['bytes']:,} bytes"
    if manifest["source"] != split.samples.identity:
        return f"is stale: the files in {split.place} have changed since it was written"
    try:
        reader = Reader(str(path))
    except (AssertionError, ValueError, IndexError, OSError) as error:
        return f"is no beton ({error})"
    if _digest(reader) != manifest["tables"]:
        return "is damaged: its tables are not the ones that were written"
    labels = reader.metadata["f1"].view(np.int64).reshape(-1)
    if not np.array_equal(labels, split.samples.labels):
        return "holds other labels than the source"
    if manifest["stamp"] != file_stamp(path):
        if manifest["content"] != file_digest(path):
            return "is damaged: its pixels are not the ones that were written"
        with suppress(WriteError):  # a shared cache may be read-only
            write_json(_manifest_path(path), manifest | {"stamp": file_stamp(path)})
    return None


def manifest_of(path: Path) -> dict | None:
    """The manifest beside a beton, None if it cannot be read."""
    try:
        return read_json(_manifest_path(path))
    except DamagedError:
        return None


def _manifest_path(path: Path) -> Path:
    return path.with_suffix(".manifest.json")


def _digest(reader: Reader) -> str:
    """Of header, fields, sample table and allocation table: where every image lies and how long it is."""
    digest = hashlib.blake2b(reader.header.tobytes(), digest_size=16)
    digest.update(reader.field_descriptors.tobytes())
    digest.update(reader.metadata.tobytes())
    digest.update(reader.alloc_table.tobytes())
    return digest.hexdigest()


def _write(split: Split, path: Path) -> None:
    """Write under a temporary name, sync, rename; the manifest last, so that a beton without one is unfinished."""
    with replacing(path) as temporary:
        _convert(split, temporary)
        reader = Reader(str(temporary))
        manifest = {
            "format": FORMAT,
            "dataset": split.dataset,
            "split": split.name,
            "samples": len(split.samples),
            "classes": split.classes,
            "bytes": temporary.stat().st_size,
            "tables": _digest(reader),
            "content": file_digest(temporary),
            "source": split.samples.identity,
            "place": str(split.place),
            "storage": str(split.storage),
            "fields": list(reader.field_names),
        }
        _manifest_path(path).unlink(missing_ok=True)
    write_json(_manifest_path(path), manifest | {"stamp": file_stamp(path)})


def _convert(split: Split, path: Path) -> None:
    """Fill a beton in this process: FFCV's own writer forks and waits for ever if a worker fails."""
    samples, labels = split.samples, split.samples.labels
    header = {"image": RGBImageField("raw"), "label": IntField(), "index": IntField()}
    fields = header | {"image": _StoredImage(split)}
    writer = DatasetWriter(str(path), header, page_size=SMALL_PAGE if split.size else PAGE, num_workers=1)
    writer.num_samples = len(samples)
    writer.prepare()
    writer.metadata_sm.close()
    writer.metadata_sm.unlink()
    table = np.zeros(len(samples), writer.metadata_type)
    writer.metadata_sm = SimpleNamespace(buf=table.data)  # one process needs no shared memory
    allocator = MemoryAllocator(str(path), writer.data_region_start, writer.page_size)
    with _open(allocator):
        for i, item in enumerate(track(_items(split), len(samples), f"writing {split.dataset} {split.name}")):
            handle_sample(((i, item), int(labels[i]), i), i, table.dtype.names, table, allocator, fields)
    writer.finalize([allocator.allocations])


@contextmanager
def _open(allocator: MemoryAllocator) -> Iterator[None]:
    allocator.__enter__()
    try:
        yield
        allocator.flush_page()
    finally:
        allocator.fp.close()


def _items(split: Split) -> Iterator[np.ndarray | bytes]:
    """What to store for each sample, in order, by threads; every image is decoded, so a broken one is named here."""

    def item(i: int) -> np.ndarray | bytes:
        where = split.samples.where(i)
        data = stored(split.samples[i], where, split.storage)
        split.storage.decode(data, where)
        return data

    with ThreadPoolExecutor(cores()) as pool:
        for first in range(0, len(split.samples), CHUNK):
            yield from pool.map(item, range(first, min(first + CHUNK, len(split.samples))))


class _StoredImage(RGBImageField):
    """FFCV's image field, given pixels or ready JPEG bytes; the file says FFCV's own type, so any reader opens it."""

    def __init__(self, split: Split) -> None:
        super().__init__("raw")
        self.split = split

    def encode(self, destination, field, malloc) -> None:
        i, item = field
        if isinstance(item, bytes):
            mode, (height, width), data = "jpg", _jpeg_size(item), np.frombuffer(item, np.uint8)
        else:
            mode, (height, width), data = "raw", item.shape[:2], item.reshape(-1)
        self.split.check_size(i, height, width)
        if data.nbytes > PAGE:
            raise ConfigError(f"{self.split.samples.where(i)} needs {data.nbytes:,} bytes: dataset.max_side=512")
        destination["mode"] = IMAGE_MODES[mode]
        destination["height"], destination["width"] = height, width
        destination["data_ptr"], storage = malloc(data.nbytes)
        storage[:] = data


def _jpeg_size(data: bytes) -> tuple[int, int]:
    """Height and width from the frame header of JPEG bytes."""
    from io import BytesIO

    from PIL import Image

    width, height = Image.open(BytesIO(data)).size
    return height, width
