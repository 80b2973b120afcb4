"""Work in a process of its own, forked from this one, in which everything is imported already."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

__all__ = ["OUT_OF_TIME", "end_with", "fork"]

SECONDS = 300
OUT_OF_TIME = 124


def fork(log: Path, work: Callable[[], int], seconds: float = SECONDS) -> int:
    """Exit code of `work` in a child (minus the signal that killed it, or OUT_OF_TIME); what it says is in `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)
    child = os.fork()
    if not child:
        os.setpgid(0, 0)  # what it starts ends with it
        end_with(work, log, log)
    try:
        return _wait(child, seconds)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)


def end_with(work: Callable[[], int | None], out: Path, err: Path) -> NoReturn:
    """End this process with the exit code of `work` (1 where it raises); what is printed goes to files."""
    code: int | None = 1
    try:
        for path, number in ((out, 1), (err, 2)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))
        code = work()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code or 0)


def _wait(child: int, seconds: float) -> int:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return OUT_OF_TIME
