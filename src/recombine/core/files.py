"""Everything durable passes here: files are whole or absent, say what they hold, and are checked when they are read.

Writing: a temporary name, sync, rename, the mode of the umask; temporary files of dead writers are swept. Every file
holds a digest of its content. Reading raises DamagedError for what is not as it was written, and who reads decides: a
checkpoint falls back to the one before, what can be computed is computed again, both with a word; results are refused.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recombine.core.errors import ConfigError, DamagedError, RecombineError, WriteError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    *("CONFIG_DIR", "append_records", "check_writable", "config_files", "read_json", "read_records"),
    *("read_tensors", "replacing", "sync_folder", "use_config_dirs", "write_atomically", "write_json"),
    *("write_records", "write_tensors", "writing"),
]

CONFIG_DIR = Path(str(resources.files("recombine"))) / "config"
"""The config groups that ship with the package."""
_config_dirs = [CONFIG_DIR]
HOST = hashlib.blake2b(socket.gethostname().encode(), digest_size=4).hexdigest()
TEMPORARY = re.compile(r"\.([0-9a-f]{8})-(\d+)-[0-9a-f]{8}\.tmp$")
"""Host and process of the writer at the end of a temporary file's name."""
DAY = 86400.0
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
DISK = FULL | {errno.EACCES, errno.EPERM, errno.EIO, errno.EISDIR, errno.ENOTDIR, errno.EEXIST}
"""What a disk or a folder can be the reason of."""
OS_ERROR = re.compile(r"os error (\d+)")
logger = logging.getLogger(__name__)


def use_config_dirs(folders: Iterable[Path]) -> None:
    """Look for configs that are given by name in lists, such as tasks=[mnist], in these folders too."""
    _config_dirs[:] = dict.fromkeys([*folders, CONFIG_DIR])


def config_files(group: str) -> dict[str, Path]:
    """The options of a config group by name; of two with the same name, the one Hydra takes."""
    found = {path.stem: path for folder in reversed(_config_dirs) for path in (folder / group).glob("[!_]*.yaml")}
    return dict(sorted(found.items()))


@contextmanager
def writing(path: Path, *, reading: bool = False) -> Iterator[None]:
    """Turn what a full, read-only or forbidden disk raises while `path` is written into WriteError, one sentence.

    `reading`: files are read in the block too, and others written: only what cannot come of reading is meant, and the
    file that the error names goes before `path`.
    """
    try:
        yield
    except RecombineError:
        raise
    except Exception as error:
        number = _disk_error(error, FULL if reading else DISK)
        if number is None:
            raise
        named = getattr(error, "filename", None) if reading else None
        raise _write_error(Path(str(named)) if named else path, number) from error


def _disk_error(error: BaseException | None, numbers: set[int]) -> int | None:
    """The system's number of what the disk did, at any depth: torch and safetensors raise errors of their own."""
    while error is not None:
        found = OS_ERROR.search(str(error)) if type(error).__name__ == "SafetensorError" else None
        number = int(found[1]) if found else getattr(error, "errno", None)
        if number in numbers:
            return number
        error = error.__cause__ or error.__context__
    return None


def _write_error(path: Path, number: int) -> WriteError:
    place = next(folder for folder in (path.absolute(), *path.absolute().parents) if os.path.isdir(folder))
    free = shutil.disk_usage(place).free >> 20
    room = f" ({free:,} MiB free in {place}); make room, or" if number in FULL - {errno.EROFS} else ";"
    mend = "name another folder (output_root=, weights_root=, cache_root=, --out)"
    return WriteError(f"cannot write {path}: {os.strerror(number)}{room} {mend}", number)


@contextmanager
def replacing(path: Path, *, keep: Path | None = None) -> Iterator[Path]:
    """A temporary path beside `path`: what the block leaves there is synced and takes the place of `path`.

    `keep`: the name that the file of before gets. If the block raises, the temporary file is removed and `path` stays
    as it was; WriteError if the disk is the reason.
    """
    temporary = path.with_name(f"{path.name}.{HOST}-{os.getpid()}-{secrets.token_hex(4)}.tmp")
    with writing(path):
        _begin(temporary, path)
        try:
            mode = temporary.stat().st_mode  # by the umask; some writers make files that only their owner can read
            yield temporary
            temporary.chmod(mode)
            with open(temporary, "rb") as stream:
                os.fsync(stream.fileno())
            if keep is not None and path.exists():
                os.replace(path, keep)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(path.parent)


def _begin(temporary: Path, path: Path) -> None:
    """Make the empty temporary file of `path`; whatever is in the way, /proc or a name that is too long, is told."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path.parent)
        temporary.touch()
    except OSError as error:
        raise _write_error(path, error.errno or errno.EIO) from error


def _sweep(folder: Path) -> None:
    """Remove the temporary files of writers that are dead; of other machines after a day."""
    with os.scandir(folder) as entries:
        found = [(entry, match) for entry in entries if (match := TEMPORARY.search(entry.name))]
    for entry, match in found:
        try:
            if not _writes(match[1], int(match[2]), entry.stat().st_mtime):
                os.unlink(entry.path)
        except FileNotFoundError:
            continue  # finished, or swept by another


def _writes(host: str, process: int, since: float) -> bool:
    """Whether a process may still be writing its temporary file, last touched at `since`."""
    if host != HOST:
        return time.time() - since < DAY
    if process == os.getpid():
        return True
    import psutil

    try:
        return psutil.Process(process).create_time() < since + 1  # else its number was given to another one
    except psutil.NoSuchProcess:
        return False


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace the file `path` by `content`: a reader sees the old content or the new one, also after a power cut."""
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def check_writable(folder: Path) -> None:
    """ConfigError if nothing can be written below `folder`: found before the work whose result goes there.

    Nothing is left where the folder is not there yet: it is the nearest one above it that is tried.
    """
    try:
        with suppress(FileNotFoundError, NotADirectoryError):
            folder.stat()  # a name that is too long
        place = next(each for each in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(each))
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise ConfigError(str(_write_error(folder, error.errno or errno.EIO))) from error


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content as JSON reads it back, with its digest."""
    plain = json.loads(json.dumps(content, default=str))
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return {**plain, "digest": hashlib.blake2b(text.encode(), digest_size=16).hexdigest()}


def _opened(found: Any, *, needs_digest: bool = True) -> dict[str, Any]:
    """The content without its digest; ValueError if that is another one."""
    if not isinstance(found, dict):
        raise ValueError("it holds no mapping")
    content = {key: value for key, value in found.items() if key != "digest"}
    if ("digest" in found or needs_digest) and found.get("digest") != _sealed(content)["digest"]:
        raise ValueError("its content is not what was written")
    return content


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a mapping as JSON with a digest of it."""
    write_atomically(path, json.dumps(_sealed(content), indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path, *, needs_digest: bool = True) -> dict[str, Any]:
    """What `write_json` wrote; DamagedError if it is something else. `needs_digest` False: older files have none."""
    try:
        return _opened(json.loads(path.read_text(encoding="utf-8")), needs_digest=needs_digest)
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedError(path, error) from error


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(_sealed(record)) + "\n"


def write_records(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write mappings as lines of JSON, each with a digest."""
    write_atomically(path, "".join(map(_line, records)))


def append_records(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Append to what `write_records` wrote."""
    with writing(path), path.open("a", encoding="utf-8") as stream:
        stream.write("".join(map(_line, records)))
        stream.flush()
        os.fsync(stream.fileno())


def read_records(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The lines that are as they were written, and how many are not (a last one that was cut off included)."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return [], int(path.exists())
    records = []
    for line in lines:
        try:
            records.append(_opened(json.loads(line)))
        except (ValueError, RecursionError):
            continue
    return records, len(lines) - len(records)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors as safetensors, with a digest of them and of `metadata` beside it; always the same bytes."""
    from safetensors.torch import save_file

    state = {key: value.detach().to("cpu").contiguous() for key, value in tensors.items()}
    with replacing(path) as temporary:
        save_file(state, temporary, {**metadata, "digest": _tensor_digest(state, metadata)})
        _sort_metadata(temporary)


def _sort_metadata(path: Path) -> None:
    """Sort the metadata in a safetensors file's header, which come in the random order of the library's hash map."""
    with path.open("r+b") as stream:
        header = json.loads(stream.read(size := int.from_bytes(stream.read(8), "little")))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        stream.seek(8)
        stream.write(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(size))


def read_tensors(path: Path, *, needs_digest: bool = True) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file; DamagedError if it cannot be read or is not what was written.

    `needs_digest` False: other people's files have none.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    except (OSError, SafetensorError) as error:
        raise DamagedError(path, error) from error
    digest = metadata.pop("digest", None)
    if (digest or needs_digest) and digest != _tensor_digest(tensors, metadata):
        raise DamagedError(path, "its content is not what was written")
    return tensors, metadata


def _tensor_digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    import torch

    digest = hashlib.blake2b(json.dumps(dict(metadata), sort_keys=True).encode(), digest_size=16)
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"\0{name} {value.dtype} {tuple(value.shape)}\0".encode())
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
