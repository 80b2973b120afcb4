"""What a fit measures between two log points, kept on the device."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from recombine.core.distributed import all_reduce_sum, world
from recombine.core.errors import NotFinite
from recombine.core.types import Step

__all__ = ["MetricBuffer"]


class MetricBuffer:
    """Logs since the last log point, summed on the device; `read` brings all of it to the host in one copy."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Begin a new interval."""
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        self.checked: list[Tensor] = []
        self.meaning: list[tuple[str, int, int | None]] = []

    def add(self, step: Step, number: int, part: int) -> None:
        """Add the batch `part` of optimizer step `number`."""
        with torch.no_grad():
            known = [name for name in step.logs if name in self.sums]
            if known:
                torch._foreach_add_([self.sums[name] for name in known], [step.logs[name] for name in known])
            for name, value in step.logs.items():
                self.counts[name] = self.counts.get(name, 0) + 1
                if name not in self.sums:  # a copy: the method may overwrite what it handed over
                    self.sums[name] = value.detach().to(torch.float32, copy=True)
        self.checked.append(step.loss.detach())
        self.meaning.append(("loss", number, part))

    def add_gradient(self, norm: Tensor, number: int) -> None:
        """Add the gradient norm of optimizer step `number`."""
        self.checked.append(norm)
        self.meaning.append(("gradient", number, None))

    def read(self) -> dict[str, float]:
        """Means over the interval and all processes, then begin anew; raises NotFinite."""
        if not self.checked:
            return {}
        packed = torch.stack([*self.sums.values(), *(value.to(torch.float32) for value in self.checked)])
        numbers = (all_reduce_sum(packed) / world()).tolist()
        means = {name: value / self.counts[name] for name, value in zip(self.sums, numbers, strict=False)}
        checked = list(zip(numbers[len(self.sums) :], self.meaning, strict=True))
        for value, meaning in checked:
            if not math.isfinite(value):
                raise NotFinite(*meaning)
        norms = [value for value, (what, *_) in checked if what == "gradient"]
        if norms:
            means["gradient_norm"] = sum(norms) / len(norms)
        self.clear()
        return means

    def state(self) -> dict[str, Any]:
        """For a checkpoint between two log points, so that a resumed run logs the same means."""
        return {
            "sums": {name: value.cpu() for name, value in self.sums.items()},
            "counts": dict(self.counts),
            "checked": [value.cpu() for value in self.checked],
            "meaning": [list(meaning) for meaning in self.meaning],
        }

    def load(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Continue from a checkpoint."""
        self.sums = {name: value.to(device) for name, value in state["sums"].items()}
        self.counts = dict(state["counts"])
        self.checked = [value.to(device) for value in state["checked"]]
        self.meaning = [tuple(meaning) for meaning in state["meaning"]]
