"""Signals that ask a run to stop."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

__all__ = ["StopSignals"]


class StopSignals:
    """While entered, SIGINT, SIGTERM and SIGUSR1 only set a flag; a second SIGINT kills at once.

    SIGUSR1 is what Slurm can send ahead of its time limit. Outside the main thread (a notebook's worker) Python
    delivers no signals, and nothing is changed.
    """

    watched = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

    def __init__(self) -> None:
        self.received: int | None = None
        self.previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self.previous = {number: signal.signal(number, self._receive) for number in self.watched}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.received == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        self.received = number
        if number == signal.SIGINT:
            # write(), as print() is not safe inside a signal handler.
            os.write(2, b"\nstopping after this step; Ctrl-C once more kills at once\n")
