"""Settings that every run has."""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib.util import find_spec
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from recombine.core.field_types import Seed
from recombine.core.settings import Settings

__all__ = ["EntrySettings", "LoggerSettings"]


def _device(name: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        raise ValueError("one of auto, cpu, cuda, cuda:<number> is needed")
    return name


class LoggerSettings(Settings):
    """Where a run is shown beside the files in its folder: the group logger."""

    name: Literal["wandb", "tensorboard", "none"] = "none"
    """The service."""
    mode: Literal["auto", "online", "offline"] = "auto"
    """auto: online if wandb knows a key, else offline; never a prompt."""
    project: str = "recombine"
    """Project of wandb."""
    entity: str | None = None
    """User or team of wandb."""
    tags: list[str] = []
    """Tags beside entry, method, dataset, experiment and commit."""
    artifact_mib: Annotated[float, Field(ge=0)] = 100
    """Networks, patches and clones up to this size are uploaded, larger ones noted by place and digest; 0: all are."""
    save_code: bool = True
    """Store this package's code, and your own that the config names, as an artifact."""
    alerts: bool = False
    """Send an alert when a training diverges."""

    def check(self, path: str) -> Iterable[str]:
        """A service whose package is not installed."""
        if self.name == "tensorboard" and find_spec("tensorboard") is None:
            yield f"{path}={self.name}: it is not installed; pip install 'recombine[tensorboard]', or logger=wandb"


class EntrySettings(Settings):
    """What every entry shares."""

    name: str = "run"
    """Readable part of the run directory's name."""
    seed: Seed = 0
    """Seed of everything random: order, augmentation, initial weights."""
    device: Annotated[str, AfterValidator(_device)] = "auto"
    """auto, cpu, cuda or cuda:<number>; auto: CUDA where there is one."""
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
    logger: LoggerSettings = LoggerSettings()
    """Logging."""

    def check_search(self) -> list[str]:
        """What keeps a search over settings from choosing by these runs: measures of test images."""
        return []
