"""The device and process group of a run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from recombine.core import distributed
from recombine.core.errors import ConfigError

__all__ = ["PRECISIONS", "open_device", "resolve"]

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def resolve(precision: str, device: torch.device) -> str:
    """The precision that `auto` means: bf16 on a CUDA device that has it itself, else fp32."""
    if precision == "auto":
        able = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return "bf16" if able else "fp32"
    if precision not in PRECISIONS:
        raise ConfigError(f"engine.precision={precision}: one of auto, {', '.join(PRECISIONS)} is needed")
    return precision


def _check_places(name: str) -> None:
    """ConfigError if torchrun's processes cannot have a GPU each; all of them find the same."""
    world, here = (int(os.environ.get(key, "1")) for key in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    if not name.startswith("cuda") or world == 1:
        return
    if name != "cuda":
        raise ConfigError(f"device={name}: {world} processes need a GPU each; device=cuda gives each its own")
    if here > (count := torch.cuda.device_count()):
        raise ConfigError(f"{here} processes, and {count} GPUs here: torchrun --nproc-per-node={count}")


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
    _check_places(name)
    device = torch.device(f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if name == "cuda" else name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    rank, world = distributed.init(device)
    try:
        yield device, rank, world
    finally:
        distributed.shutdown()
