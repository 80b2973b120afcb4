"""The device and process group of a run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from recombine.core import distributed
from recombine.core.errors import ConfigError

__all__ = ["open_device"]


@contextmanager
def open_device(name: str, *, deterministic: bool = False) -> Iterator[tuple[torch.device, int, int]]:
    """Enter the device called `name` and the process group of torchrun: (device, rank, world size).

    `auto` is CUDA where there is one, else the CPU; each local rank has a GPU of its own. Raises ConfigError for CUDA
    where there is none.
    """
    if deterministic:
        # cuBLAS reads this once, when CUDA starts.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    elif name.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"device={name}: torch {torch.__version__} finds no CUDA device; device=auto takes the CPU")
    device = torch.device(f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if name == "cuda" else name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    rank, world = distributed.init(device)
    try:
        yield device, rank, world
    finally:
        distributed.shutdown()
