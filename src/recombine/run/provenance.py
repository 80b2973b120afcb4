"""Where a row comes from: code, versions, machine, cost and command."""

from __future__ import annotations

import platform
import resource
import subprocess
import sys
import time
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from recombine.version import __version__

__all__ = ["Stopwatch", "commit", "device_name", "versions"]

PACKAGES = ("torch", "torchvision", "timm", "ffcv", "hydra-core", "wandb", "numpy")


@cache
def commit() -> dict[str, Any]:
    """The version of this package; in a checkout also its git commit, and whether tracked files differ from it."""
    here = Path(__file__)
    questions = (
        ["ls-files", "--error-unmatch", here.name],  # an installed copy may lie inside another project's checkout
        ["rev-parse", "HEAD"],
        ["status", "--porcelain", "--untracked-files=no"],
    )
    try:
        _, head, status = (
            subprocess.run(
                ["git", "-C", here.parent, *words], capture_output=True, text=True, check=True, timeout=20
            ).stdout
            for words in questions
        )
    except (OSError, subprocess.SubprocessError):
        return {"version": __version__}
    return {"version": __version__, "commit": head.strip(), "dirty": bool(status.strip())}


def versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that decide about numbers; None where one is not installed."""

    def installed(package: str) -> str | None:
        try:
            return version(package)
        except PackageNotFoundError:
            return None

    return {"python": platform.python_version(), **{package: installed(package) for package in PACKAGES}}


def device_name(device: torch.device) -> str:
    """The device in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu" and sys.platform == "linux":
        names = [line.split(":")[1].strip() for line in _cpu_lines() if line.startswith("model name")]
        return f"{names[0] if names else platform.machine()}, {torch.get_num_threads()} threads"
    return f"{device.type} {platform.machine()}"


def _cpu_lines() -> list[str]:
    return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()


class Stopwatch:
    """Seconds and peak memory since it was made."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.start = time.monotonic()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def read(self) -> dict[str, float]:
        """Wall seconds, and peak memory in MiB: of the device's allocator, or of the process (its whole life)."""
        if self.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self.device) / 2**20
        else:
            # ru_maxrss counts KiB on Linux and bytes on macOS.
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
        return {"seconds": round(time.monotonic() - self.start, 2), "peak_memory_mib": round(peak, 1)}
