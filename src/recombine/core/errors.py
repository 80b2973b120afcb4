"""Errors a user can mend, each with the exit code the command ends with."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable

__all__ = [
    *("ConfigError", "DamagedError", "Diverged", "Interrupted", "LockedError", "NotFinite", "Pruned", "RecombineError"),
    *("WriteError", "did_you_mean", "exit_code_of", "reader_is_gone"),
]


class RecombineError(Exception):
    """Shown as one message without a traceback; ends the command with `exit_code`."""

    exit_code = 1


class ConfigError(RecombineError, ValueError):
    """Settings, files or choices that cannot work: what was given, what is allowed, the override that mends it."""

    exit_code = 2
    started = False
    """Whether the run had begun when it showed: then there is a folder with a failed row."""

    def __init__(self, problems: str | Iterable[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class LockedError(RecombineError):
    """Another process is working in the same run directory."""

    exit_code = 3


class DamagedError(RecombineError):
    """A file is not as it was written."""

    def __init__(self, path: object, reason: object) -> None:
        super().__init__(f"{path} is damaged: {str(reason).partition(chr(10))[0]}")


class WriteError(RecombineError, OSError):
    """A file cannot be written: the disk is full, read-only or fails. What was there before is as it was."""

    def __init__(self, text: str, number: int) -> None:
        super().__init__(text)
        self.errno = number


class Diverged(RecombineError):
    """A loss or gradient stopped being finite."""

    exit_code = 4


class Interrupted(RecombineError):
    """A signal asked the run to stop; the state is saved and repeating the command continues."""

    def __init__(self, signal_number: int) -> None:
        self.exit_code = 128 + signal_number
        super().__init__(f"stopped by signal {signal_number}; repeat the command to continue")


class Pruned(RecombineError):
    """A hyper-parameter search stopped its trial early, as others did better at the same step."""

    exit_code = 0


class NotFinite(ArithmeticError):
    """The first value since the last log point that was not finite."""

    def __init__(self, what: str, step: int, part: int | None = None) -> None:
        super().__init__(f"{what} of step {step}")
        self.what, self.step, self.part = what, step, part
        """loss, gradient or weights; optimizer step; batch of that step's accumulation (None: any of them)."""


def did_you_mean(given: str, known: Iterable[str], *, show: int = 12) -> str:
    """The end of a message about an unknown name: the nearest known ones, or else `show` of all (0: none)."""
    known = sorted(set(known))
    suggestion = difflib.get_close_matches(given, known, n=3, cutoff=0.6)
    if suggestion:
        return "did you mean " + " or ".join(f"'{name}'" for name in suggestion) + "?"
    if not show:
        return ""
    more = f", ... ({len(known)} in all)" if len(known) > show else ""
    return f"known are: {', '.join(known[:show])}{more}" if known else "there are none"


def exit_code_of(error: BaseException | None) -> int:
    """The code a command ends with after `error` (None: success)."""
    if isinstance(error, RecombineError):
        return error.exit_code
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    return 0 if error is None else 130 if isinstance(error, KeyboardInterrupt) else 1


def reader_is_gone() -> int:
    """Exit code for BrokenPipeError, as in `... --help | head -1`, after which no more may be said."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return 141  # as a shell tells SIGPIPE
