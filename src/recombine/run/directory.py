"""The directory of a run: one process at a time, whole or taken up again."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from recombine.core.errors import ConfigError, DamagedError, LockedError
from recombine.core.files import read_json, write_atomically, write_json, writing
from recombine.core.results import read_rows
from recombine.core.types import Row

__all__ = ["discard", "finished", "is_untouched", "locked", "note_files", "noted_files", "prepare", "release"]

RESERVE, RESERVED = "reserved", 1 << 17
"""File, and bytes, that a run keeps free for its rows on a disk that becomes full."""
NOTES = {
    *("lock", "config.yaml", "inputs.json", "metrics.jsonl", "row.json", "traceback.txt", "wandb", "tensorboard"),
    RESERVE,
}
"""What a run leaves before it has trained or measured anything."""
PATIENCE = 5.0
"""Seconds granted to the children of a holder that was just killed: they keep its lock until they notice."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold `folder/lock`, or raise LockedError naming the process that does.

    The kernel gives the lock back however its holder ends, so a stale file never blocks; the file's content
    (host, process id, start) only tells a person who it is.
    """
    with writing(folder / "lock"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "lock").touch()
    with (folder / "lock").open("a+", encoding="utf-8") as file:
        _acquire(file, folder)
        file.seek(0)
        file.truncate()
        json.dump({"host": socket.gethostname(), "process": os.getpid(), "since": time.strftime("%F %T")}, file)
        file.flush()
        try:
            yield
        finally:
            file.seek(0)
            file.truncate()
            # Explicitly, as forked children share the lock and may outlive this block.
            fcntl.flock(file, fcntl.LOCK_UN)


def _acquire(file, folder: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
        file.seek(0)
        holder = _holder(file.read())
        if _alive(holder) or time.monotonic() > deadline:
            raise LockedError(
                f"{folder} is in use by process {holder.get('process', '?')} on {holder.get('host', '?')} since "
                f"{holder.get('since', '?')}; wait for it, or stop it and repeat the command"
            )
        time.sleep(0.1)


def _holder(text: str) -> dict:
    try:
        return json.loads(text)
    except ValueError:
        # Taken a moment ago, not yet signed.
        return {}


def _alive(holder: dict) -> bool:
    return holder.get("host") != socket.gethostname() or psutil.pid_exists(holder["process"])


def finished(folder: Path, files: Iterable[Path] = ()) -> list[Row] | None:
    """The rows of the run in `folder` if it ended well and `files` are as `note_files` saw them then, else None."""
    rows = read_rows(folder / "row.json") if (folder / "row.json").exists() else None
    if rows is None or any(row.status != "ok" for row in rows):
        return None
    noted = folder / "files.json"
    try:
        return rows if (read_json(noted) if noted.exists() else {}) == _stamps(files) else None
    except DamagedError as error:
        print(f"{error}; what is finished of the run is gone through again")
        return None


def noted_files(folder: Path) -> list[Path]:
    """The files outside `folder` that `note_files` saw; none if nobody knows any more."""
    try:
        return [Path(name) for name in read_json(folder / "files.json")] if (folder / "files.json").exists() else []
    except DamagedError:
        return []


def note_files(folder: Path, files: Iterable[Path]) -> None:
    """Remember what the files outside `folder` look like that a finished run read or left."""
    if stamps := _stamps(files):
        write_json(folder / "files.json", stamps)


def _stamps(files: Iterable[Path]) -> dict[str, list[int]]:
    """Size and time of the last change by path; nothing of a file that is not there."""
    found = {str(file.resolve()): file.stat() for file in files if file.exists()}
    return {name: [status.st_size, status.st_mtime_ns] for name, status in sorted(found.items())}


def is_untouched(folder: Path) -> bool:
    """Whether nothing was trained or measured in a folder: no attempt, this one or an earlier one, left a result."""
    files = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return all(file.parts[0] in NOTES for file in files)


def discard(folder: Path, made: Iterable[Path]) -> None:
    """Remove the folder of a run that was refused, and those of `made`, which were made for it, that are empty."""
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):
        for above in made:
            above.rmdir()


def release(folder: Path) -> None:
    """Give the space free that `prepare` reserved: the run ends, and its rows are written."""
    (folder / RESERVE).unlink(missing_ok=True)


def prepare(folder: Path, config_text: str, resume: str) -> None:
    """Bring the directory into the state that `engine.resume` names, and note the config (YAML) in it.

    Space for the rows of a run that fails is reserved; WriteError if there is none.
    """
    old = [path for path in folder.iterdir() if path.name not in ("lock", "previous", RESERVE)]
    if resume == "must" and not any("previous" not in path.relative_to(folder).parts for path in folder.rglob("*.pt")):
        raise ConfigError(f"engine.resume=must: {folder} holds no checkpoint; engine.resume=auto would start there")
    write_atomically(folder / RESERVE, os.urandom(RESERVED))  # noise: some disks store zeros as nothing
    if resume == "never" and old:
        # One earlier attempt is kept: a slip of the keyboard must not cost days of training.
        shutil.rmtree(folder / "previous", ignore_errors=True)
        (folder / "previous").mkdir()
        for path in old:
            path.rename(folder / "previous" / path.name)
    (folder / "traceback.txt").unlink(missing_ok=True)
    write_atomically(folder / "config.yaml", config_text)
