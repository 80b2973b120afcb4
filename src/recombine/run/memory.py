"""What helps a run whose device has no memory left."""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING

import torch

from recombine.core.errors import RecombineError

if TYPE_CHECKING:
    from omegaconf import DictConfig

__all__ = ["explain_memory"]

CPU = "DefaultCPUAllocator"
"""How torch begins the same error on the CPU, as a plain RuntimeError."""


def explain_memory(error: BaseException, cfg: DictConfig, device: torch.device) -> BaseException:
    """The error as one message with the override that helps, if it says that memory is spent; else as it is.

    Halves of a batch whose gradients are added up are the same step; BatchNorm alone sees the halves. Evaluations
    give the same at any size.
    """
    if not isinstance(error, torch.OutOfMemoryError | MemoryError) and CPU not in str(error):
        return error
    frames = {frame.name for frame in traceback.extract_tb(error.__traceback__)}
    accumulated = int((cfg.get("engine") or {}).get("grad_accum_steps") or 1)
    if "_update" in frames:
        size = cfg.batch_size
        mend = f"batch_size={max(1, size // 2)} engine.grad_accum_steps={2 * accumulated} trains the same in halves"
    else:
        size = cfg.eval_batch_size
        mend = f"eval_batch_size={max(1, size // 2)} measures the same"
    told = RecombineError(f"{device}: no memory left with batches of {size} images; {mend}")
    told.__cause__ = error
    return told
