"""One process at a time."""

from __future__ import annotations

import errno
import fcntl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

__all__ = ["exclusive"]


@contextmanager
def exclusive(path: Path, *, wait: bool = True, stopped: Callable[[], object] = lambda: None) -> Iterator[bool]:
    """Let one process at a time into the block, by a lock on the file `path`; yields whether it is this one's.

    The kernel gives the lock back however its holder ends. Without `wait` a lock that another process holds is left
    alone. While waiting, `stopped` is called twice a second and may raise. On a disk that takes no lock, nothing is
    shared and nobody waits.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        opened = path.open("a")
    except OSError:
        yield True
        return
    with opened as file:
        held = _lock(file)
        while wait and not held:
            stopped()
            time.sleep(0.5)
            held = _lock(file)
        try:
            yield held
        finally:
            if held:  # explicitly, as forked children share the lock and may outlive this block
                fcntl.flock(file, fcntl.LOCK_UN)


def _lock(file: IO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True
