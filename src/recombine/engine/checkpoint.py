"""Checkpoints that are whole or absent, and what a checkpoint belongs to."""

from __future__ import annotations

import errno
import logging
import pickle
import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from recombine.core.errors import ConfigError, DamagedError, WriteError
from recombine.core.files import replacing
from recombine.run.device import resolve

__all__ = [
    "differences",
    "exists",
    "fingerprint",
    "load_latest",
    "remove",
    "save",
]

FORMAT = 1
LAST, PREVIOUS = "last.pt", "prev.pt"
_RESULT = ("grad_accum_steps", "grad_clip_norm", "ema_decay")
_IMPLEMENTATION = ("foreach", "fused", "capturable", "differentiable")
"""Settings of the engine that change its result, and of an optimizer that choose its implementation alone."""
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


def fingerprint(training: Any, schedule: Callable) -> dict[str, str]:
    """What a checkpoint of a `Training` belongs to: resuming with anything else would not be the same training."""
    cfg, plan, train = training.cfg, training.plan, training.train
    settings = {k: v for k, v in training.optimizer.defaults.items() if k not in _IMPLEMENTATION}
    function = schedule.func if isinstance(schedule, partial) else schedule
    arguments = schedule.keywords if isinstance(schedule, partial) else {}
    fingerprint = {
        "seed": training.run.seed,
        "method": type(training.method).__name__,
        "optimizer": type(training.optimizer).__name__,
        **{f"optimizer.{name}": value for name, value in settings.items()},
        "schedule": getattr(function, "__name__", type(function).__name__),
        **{f"schedule.{name}": value for name, value in arguments.items()},
        "steps": plan.total,
        "steps per epoch": plan.steps_per_epoch,
        "batch_size": plan.batch_size,
        "training data": train.digest,
        "engine.precision": resolve(cfg.precision, training.run.device),
        **{f"engine.{name}": getattr(cfg, name) for name in _RESULT},
        **{name: f"{v.dtype} {list(v.shape)}" for name, v in training.method.trained_state().items()},
    }
    return {name: str(value) for name, value in fingerprint.items()}


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
