"""Checkpoints that are whole or absent, and what a checkpoint belongs to."""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from recombine.core.errors import ConfigError
from recombine.core.files import replacing, sync_folder

__all__ = [
    "differences",
    "load_latest",
    "remove",
    "save",
]

FORMAT = 1
LAST, PREVIOUS = "last.pt", "prev.pt"
_UNREADABLE = (OSError, RuntimeError, EOFError, KeyError, ValueError, pickle.UnpicklingError)
logger = logging.getLogger(__name__)


def save(folder: Path, state: Mapping[str, Any]) -> None:
    """Write `state` as the latest checkpoint of `folder`; the one before stays as prev.pt.

    A full disk raises OSError; both older files stay as they were.
    """
    for leftover in folder.glob("*.tmp"):  # of a process killed while writing; a run has one writer
        leftover.unlink()
    fresh = folder / "next.pt"
    with replacing(fresh) as temporary:
        torch.save({**state, "format": FORMAT}, temporary)
        _check(temporary)
    if (folder / LAST).exists():
        os.replace(folder / LAST, folder / PREVIOUS)
    os.replace(fresh, folder / LAST)
    sync_folder(folder)


def load_latest(folder: Path) -> dict[str, Any] | None:
    """The newest readable checkpoint of `folder` on the CPU, or None; a damaged file is skipped with a warning."""
    for name in (LAST, PREVIOUS):
        path = folder / name
        if not path.exists():
            continue
        try:
            state = _read(path)
        except _UNREADABLE as error:
            logger.warning("checkpoint %s is damaged (%s) and is left out", path, str(error).partition("\n")[0])
            continue
        if state["format"] != FORMAT:
            raise ConfigError(
                f"{path} has checkpoint format {state['format']}, this version reads {FORMAT}; "
                "start over with engine.resume=never"
            )
        return state
    return None


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
    try:
        _read(path)
    except _UNREADABLE as error:
        raise OSError(f"{path} cannot be read back after writing: is the disk full?") from error


def _read(path: Path) -> dict[str, Any]:
    return torch.load(path, map_location="cpu", weights_only=True)
