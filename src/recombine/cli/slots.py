"""Places for jobs that run side by side: one a GPU, or one for every two cores where there is none."""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from pathlib import Path
from typing import TextIO

from omegaconf import OmegaConf

__all__ = ["gpus", "places", "register_places", "take_place"]

_taken: list[TextIO] = []


def gpus() -> list[str]:
    """The GPUs that this process may use, without importing torch."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name.strip() for name in given.split(",") if name.strip() not in ("", "-1")]
    return [path.name.removeprefix("nvidia") for path in sorted(Path("/dev").glob("nvidia[0-9]*"))]


def places() -> int:
    """How many jobs run at once on this machine."""
    return len(gpus()) or max(1, (os.cpu_count() or 1) // 2)


def take_place() -> None:
    """Wait for a place that no other process of this user has, and keep it; if it is a GPU, see no other.

    It is held until the process ends, as CUDA does not leave its GPU either: launchers use processes again. The kernel
    gives the place back however the process ends.
    """
    if _taken:
        return
    names = [f"gpu{gpu}" for gpu in gpus()] or [f"cpu{k}" for k in range(places())]
    folder = Path(tempfile.gettempdir()) / f"recombine-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    while not _taken:
        for name in names:
            file = (folder / f"{name}.lock").open("w")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.close()
                continue
            _taken.append(file)
            if name.startswith("gpu"):
                os.environ["CUDA_VISIBLE_DEVICES"] = name.removeprefix("gpu")
            return
        time.sleep(0.2)


def register_places() -> None:
    """Make `${places:}` (jobs at once) and `${gpu_share:}` (GPUs of a job) known to configs of launchers."""
    OmegaConf.register_new_resolver("places", places, replace=True)
    OmegaConf.register_new_resolver("gpu_share", lambda: min(1, len(gpus())), replace=True)
