"""Signals that ask a run to stop."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from recombine.core.errors import Interrupted

__all__ = ["StopSignals", "breakable", "finishing"]

_unbroken: list[bool] = []


@contextmanager
def finishing() -> Iterator[None]:
    """A block that a signal does not break off: who is in it looks at `StopSignals.received` where it can stop."""
    _unbroken.append(True)
    try:
        yield
    finally:
        _unbroken.pop()


@contextmanager
def breakable() -> Iterator[None]:
    """A part of a `finishing` block that a signal does break off."""
    _unbroken.append(False)
    try:
        yield
    finally:
        _unbroken.pop()


class StopSignals:
    """While entered, these signals stop the run: at once by Interrupted, or as a flag while `finishing`.

    SIGINT, SIGTERM, and what Slurm and submitit send ahead of a time limit: SIGUSR1, SIGUSR2. Several processes only
    set the flag, as those that wait for each other have to stop together; a second SIGINT kills at once. Outside the
    main thread (a notebook's worker) Python delivers no signals, and nothing is changed.
    """

    watched = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)

    def __init__(self) -> None:
        self.received: int | None = None
        self.previous: dict[int, Any] = {}
        self.process = os.getpid()

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self.previous = {number: signal.signal(number, self._receive) for number in self.watched}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self.process:  # a worker that was forked: its parent ends it
            return
        if number == signal.SIGINT and self.received == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        self.received = number
        if number == signal.SIGINT:
            # write(), as print() is not safe inside a signal handler.
            os.write(2, b"\nstopping; Ctrl-C once more kills at once\n")
        if not any(_unbroken[-1:]) and int(os.environ.get("WORLD_SIZE", "1")) == 1:
            raise Interrupted(number)
