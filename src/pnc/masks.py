"""Which filters of the source belong to a clone: one learned score each, a hard budget (sections 4.2 and 4.6).

The paper's text that was at hand does not say how masks are made binary; hard top-k with a straight-through gradient is
our choice, as it keeps the budget of eq. (3) exactly.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from src.core.errors import ConfigError

__all__ = ["Gate", "annealed", "set_keep"]

SETTLED = 0.7
"""Share of the steps after which the budget is the final one."""


class Gate(nn.Module):
    """Multiplies the channels of a value by 0 or 1: the share `keep` with the largest scores stays.

    The gradient of the mask is handed to the scores unchanged. All filters are on at the start.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scores = nn.Parameter(0.5 + 0.01 * torch.rand(channels))
        self.register_buffer("keep", torch.ones(()))

    def kept(self) -> Tensor:
        """Which channels are on, bool [C]; at least one is."""
        count = (self.keep * len(self.scores)).round().clamp(min=1)
        rank = self.scores.detach().argsort(descending=True, stable=True).argsort()
        return rank < count

    @torch.no_grad()
    def fix(self, mask: Tensor) -> None:
        """Keep exactly the channels of a bool mask [C]."""
        self.scores.copy_(mask)
        self.keep.copy_(mask.float().mean())

    def forward(self, value: Tensor) -> Tensor:
        """[B, C, ...] -> the same with masked channels 0."""
        mask = self.kept().to(value.dtype) + (self.scores - self.scores.detach()).to(value.dtype)
        return value * mask.view(1, -1, *[1] * (value.ndim - 2))


def annealed(step: int, steps: int, keep_ratio: float) -> float:
    """The share of channels that stays after `step` of `steps`: from 1 to `keep_ratio` along a cubic (section 4.6)."""
    return keep_ratio + (1 - keep_ratio) * (1 - min(1.0, step / (SETTLED * max(1, steps)))) ** 3


def set_keep(gates: Iterable[Gate], keep: float) -> None:
    """Give all gates the same budget, without waiting for the device."""
    if not 0 < keep <= 1:
        raise ConfigError(f"method.keep_ratio={keep}: above 0 and at most 1 is needed, such as method.keep_ratio=0.5")
    for gate in gates:
        gate.keep.fill_(keep)
