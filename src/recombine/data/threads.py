"""FFCV changes torch's thread count as a side effect; this keeps it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["keep_torch_threads"]


@contextmanager
def keep_torch_threads() -> Iterator[None]:
    """Restore `torch.get_num_threads()` at the end."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)
