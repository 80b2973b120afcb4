"""The terminal: names appear as they are, whatever brackets and colons they hold."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

__all__ = ["open_console", "track"]

WIDE = 200
"""Columns where the output is a file or a pipe, which have no width; the default of 80 would cut tables."""


def open_console(*, stderr: bool = False) -> Console:
    """A console that takes no text for markup."""
    options: dict[str, Any] = {"stderr": stderr, "highlight": False, "markup": False, "emoji": False}
    console = Console(**options)
    return console if console.is_terminal else Console(**options, width=WIDE)


def track(items: Iterable[Any], total: int, label: str) -> Iterable[Any]:
    """The items, with a bar on the terminal while they are taken."""
    console = open_console(stderr=True)
    columns = TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        yield from progress.track(items, total, description=label)
