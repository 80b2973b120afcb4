"""What jobs print that run side by side in one terminal: each line says whose it is."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

__all__ = ["named_lines"]


class NamedLines:
    """A stream that passes whole lines on, with a name before each; no terminal, so that no bar is drawn on it."""

    def __init__(self, stream: TextIO, name: str) -> None:
        self.stream, self.name, self.rest = stream, name, ""

    def write(self, text: str) -> int:
        """Pass the lines on that are complete."""
        *lines, self.rest = (self.rest + text).split("\n")
        if lines:  # in one piece, which another job's does not break
            self.stream.write("".join(f"{self.name}{line}\n" for line in lines))
            self.stream.flush()
        return len(text)

    def flush(self) -> None:
        """Nothing: a line that is not complete waits."""

    def close(self) -> None:
        """Pass the rest on."""
        if self.rest:
            self.write("\n")

    def isatty(self) -> bool:
        """No."""
        return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def named_lines(name: str) -> Iterator[None]:
    """Put a name before every line that is printed or logged."""
    before = sys.stdout, sys.stderr
    named = [NamedLines(stream, name) for stream in before]
    handlers = [handler for handler in logging.root.handlers if isinstance(handler, logging.StreamHandler)]
    moved = [(handler, named[before.index(handler.stream)]) for handler in handlers if handler.stream in before]
    streams = [(handler, handler.setStream(stream)) for handler, stream in moved]
    sys.stdout, sys.stderr = named  # type: ignore[assignment]
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
        for handler, stream in streams:
            handler.setStream(stream)
        for stream in named:
            stream.close()
