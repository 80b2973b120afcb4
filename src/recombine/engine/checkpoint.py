"""Checkpoints that are whole or absent, and what a checkpoint belongs to."""

from __future__ import annotations

import errno
import logging
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from recombine.core.errors import ConfigError, DamagedError, WriteError
from recombine.core.files import replacing

__all__ = [
    "differences",
    "exists",
    "load_latest",
    "remove",
    "save",
]

FORMAT = 1
LAST, PREVIOUS = "last.pt", "prev.pt"
_UNREADABLE = (OSError, RuntimeError, EOFError, KeyError, ValueError, pickle.UnpicklingError, zipfile.BadZipFile)
logger = logging.getLogger(__name__)


def save(folder: Path, state: Mapping[str, Any]) -> None:
    """Write `state` as the latest checkpoint of `folder`; the one before stays as prev.pt.

    A disk that is full or loses what it was given raises WriteError; both older files stay as they were.
    """
    with replacing(folder / LAST, keep=folder / PREVIOUS) as temporary:
        with open(temporary, "wb") as stream:
            torch.save({**state, "format": FORMAT, "keys": sorted(state)}, stream)
        try:
            _check(temporary)
        except DamagedError as error:
            raise WriteError(f"the disk does not give back what was written: {error}", errno.EIO) from error


def load_latest(folder: Path) -> dict[str, Any] | None:
    """The newest checkpoint of `folder` that is as it was written, on the CPU, or None; a warning for each other."""
    for name in (LAST, PREVIOUS):
        path = folder / name
        if not path.exists():
            continue
        try:
            return _read(path)
        except DamagedError as error:
            logger.warning("checkpoint %s; it is left out", error)
    return None


def exists(folder: Path) -> bool:
    """Whether there are checkpoints in `folder`, usable or not."""
    return any((folder / name).exists() for name in (LAST, PREVIOUS))


def remove(folder: Path) -> None:
    """Delete the checkpoints of `folder`, if any."""
    for name in (LAST, PREVIOUS):
        (folder / name).unlink(missing_ok=True)


def differences(stored: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """One line per key whose value differs between the fingerprint in a checkpoint and that of the present fit."""
    lines = []
    for key in [*stored, *(key for key in now if key not in stored)]:
        before, after = (str(side[key]) if key in side else "absent" for side in (stored, now))
        if before != after:
            lines.append(f"{key}: {before} in the checkpoint, {after} now")
    return lines


def _check(path: Path) -> None:
    """DamagedError if a byte of the content is not what was written: a torch file is a zip, with a CRC of each part."""
    try:
        with zipfile.ZipFile(path) as parts:
            wrong = parts.testzip()
    except (*_UNREADABLE, NotImplementedError) as error:
        raise DamagedError(path, error) from error
    if wrong:
        raise DamagedError(path, f"{wrong} is not what was written")


def _read(path: Path) -> dict[str, Any]:
    _check(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        raise DamagedError(path, error) from error
    if not isinstance(state, dict) or "format" not in state:
        raise DamagedError(path, "it is no checkpoint of a training")
    if state["format"] != FORMAT:
        raise ConfigError(
            f"{path} has checkpoint format {state['format']}, this version reads {FORMAT}; "
            "start over with engine.resume=never"
        )
    missing = [key for key in state.get("keys", ()) if key not in state]
    if missing:
        raise DamagedError(path, f"it lacks {', '.join(missing)}")
    return state
