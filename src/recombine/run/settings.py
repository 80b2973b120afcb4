"""Settings that every run has."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from recombine.core.settings import Settings

__all__ = ["EntrySettings", "LoggerSettings"]


def _device(name: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", name):
        raise ValueError("one of auto, cpu, cuda, cuda:<number>, mps is needed")
    return name


class LoggerSettings(Settings):
    """Where a run is logged beside its folder: the group wandb."""

    mode: Literal["auto", "online", "offline", "disabled"] = "disabled"
    """auto: online if wandb knows a key, else offline; never a prompt."""
    project: str = "recombine"
    """Project of wandb."""
    entity: str | None = None
    """User or team of wandb."""
    tags: list[str] = []
    """Tags beside entry, method and dataset."""


class EntrySettings(Settings):
    """What every entry shares."""

    name: str = "run"
    """Readable part of the run directory's name."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of everything random: order, augmentation, initial weights."""
    device: Annotated[str, AfterValidator(_device)] = "auto"
    """auto, cpu, cuda, cuda:<number> or mps; auto: CUDA where there is one."""
    batch_size: Annotated[int, Field(ge=1)] = 128
    """Samples of a training step, over all devices together."""
    eval_batch_size: Annotated[int, Field(ge=1)] = 256
    """Samples evaluated at once."""
    data_root: str = "data"
    """Folder of datasets, one folder each."""
    weights_root: str = "weights"
    """Folder of checkpoints, found by name."""
    cache_root: str = "cache"
    """Folder of what can be computed again: converted datasets, predictions."""
    output_root: str = "outputs"
    """Folder of runs."""
    verify_inputs: bool = False
    """Compare the contents of what an earlier run read also where size and time of the files are the same."""
    wandb: LoggerSettings = LoggerSettings()
    """Logging."""
