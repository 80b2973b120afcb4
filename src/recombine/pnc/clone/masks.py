"""Which filters of the source belong to a clone: one learned score each, a hard budget.

The paper's text that was at hand does not say how masks are made binary; hard top-k with a straight-through gradient is
our default, as it keeps the budget of eq. (3) exactly. The softer kinds end in the same hard top-k.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recombine.core.distributed import shared
from recombine.core.errors import ConfigError

__all__ = [
    "MASK_KINDS",
    "ChannelMask",
    "WeightMask",
    "anneal_keep_ratio",
    "budget_penalty",
    "harden",
    "order_scores",
    "ramp",
    "set_keep_ratio",
    "share_budget",
]

MASK_KINDS = {"topk_ste": 0.5, "sigmoid": 3.0, "gumbel": 3.0}
"""How masks are learned, each with the score at which filters start.

topk_ste: the best filters are on, gradients pass the step unchanged. sigmoid: filters fade, m = sigmoid(a). gumbel:
filters are on with probability sigmoid(a), drawn in every step, with the gradient of the binary concrete relaxation
(Maddison et al., ICLR 2017). The last two are held to the budget by `budget_penalty`.
"""
SPREAD = 0.1
"""Of the scores of a mask that starts from an order: five steps of the default rate make the last filter the first."""
TEMPERATURE = 2 / 3
"""Of gumbel; 2/3 is the value its inventors advise for binary variables."""
SETTLED = 0.7
"""Fraction of the steps after which the budget is the final one."""


class ChannelMask(nn.Module):
    """Multiplies the channels of a value by 0 or 1: the fraction `keep` with the largest scores stays.

    In training the kinds sigmoid and gumbel differ from that; evaluated, all kinds are the same. All filters are on
    at the start.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.kind = "topk_ste"
        self.scores = nn.Parameter(MASK_KINDS[self.kind] + 0.01 * torch.rand(channels))
        self.keep: Tensor
        self.register_buffer("keep", torch.ones(()))
        self.peers: tuple[ChannelMask, ...] = (self,)
        """The masks whose channels compete for one budget; a tuple, so that they are not registered as submodules."""

    def set_kind(self, kind: str) -> None:
        """Learn the mask in another way (`MASK_KINDS`), from the scores at which that kind starts."""
        self.scores.data += MASK_KINDS[kind] - MASK_KINDS[self.kind]
        self.kind = kind

    def kept(self) -> Tensor:
        """Which channels are on, bool [C]; at least one of each mask is."""
        scores = torch.cat([_with_a_winner(mask.scores.detach()) for mask in self.peers])
        count = (self.keep * len(scores)).round().clamp(min=len(self.peers))
        on = scores.argsort(descending=True, stable=True).argsort() < count
        return on.split([len(mask.scores) for mask in self.peers])[self.peers.index(self)]

    @torch.no_grad()
    def fix(self, mask: Tensor) -> None:
        """Keep exactly the channels of a bool mask [C]."""
        self.scores.copy_(mask)
        self.keep.copy_(mask.float().mean())

    def multipliers(self) -> Tensor:
        """What the channels are multiplied by, with a gradient to all scores: float [C]."""
        if self.kind == "topk_ste" or not self.training:
            return self.kept().to(self.scores.dtype) + (self.scores - self.scores.detach())
        if self.kind == "sigmoid":
            return self.scores.sigmoid()
        noise = shared(torch.rand_like(self.scores)).logit(1e-6)
        soft = ((self.scores + noise) / TEMPERATURE).sigmoid()
        return (soft > 0.5).to(soft.dtype) + (soft - soft.detach())

    def forward(self, value: Tensor) -> Tensor:
        """[B, C, ...] -> the same with masked channels 0."""
        return value * self.multipliers().to(value.dtype).view(1, -1, *[1] * (value.ndim - 2))


class WeightMask(ChannelMask):
    """The same of the single weights of a layer, in the order in which they are stored."""

    def forward(self, value: Tensor) -> Tensor:
        """Weights of any shape -> the same with masked ones 0."""
        return value * self.multipliers().to(value.dtype).view_as(value)


@torch.no_grad()
def order_scores(channel_masks: Sequence[ChannelMask], importance: Sequence[Tensor]) -> None:
    """Give the channels of each mask scores in the order of their importance [C], from the start of its kind upwards.

    Masks that share a budget are ordered together.
    """
    known = dict(zip(channel_masks, importance, strict=True))
    for mask in channel_masks:
        rivals = torch.cat([known[peer] for peer in mask.peers])
        place = torch.searchsorted(rivals.sort().values, known[mask]) / len(rivals)
        mask.scores.copy_(MASK_KINDS[mask.kind] + SPREAD * place)


def _with_a_winner(scores: Tensor) -> Tensor:
    """Scores whose largest is infinite, so that it is among the best of any number of layers."""
    return scores.index_fill(0, scores.argmax(0, keepdim=True), torch.inf)


def share_budget(channel_masks: Sequence[ChannelMask]) -> None:
    """Let the channels of all masks compete for one budget (method.scope=global)."""
    for mask in channel_masks:
        mask.peers = tuple(channel_masks)


def budget_penalty(channel_masks: Sequence[ChannelMask], keep_ratio: float) -> Tensor:
    """What holds soft masks to the budget and drives them to 0 and 1, 0-d.

    30 sum_l relu(mean(m^l) - keep_ratio) + 2 sum_l mean(m^l (1 - m^l)) over the masks, m = sigmoid(a); under a common
    budget the first mean is over all masks that share it.
    """
    total = torch.zeros((), device=channel_masks[0].scores.device)
    for mask in channel_masks:
        soft = mask.scores.sigmoid()
        kept = torch.cat([peer.scores for peer in mask.peers]).sigmoid().mean()
        total = total + 30 * F.relu(kept - keep_ratio) + 2 * (soft * (1 - soft)).mean()
    return total


def ramp(step: int, steps: int) -> float:
    """From 0 to 1 over the steps after which the budget is the final one."""
    return min(1.0, step / (SETTLED * max(1, steps)))


def anneal_keep_ratio(step: int, steps: int, keep_ratio: float) -> float:
    """The fraction of channels that stays after `step` of `steps`: from 1 to `keep_ratio` along a cubic."""
    return keep_ratio + (1 - keep_ratio) * (1 - ramp(step, steps)) ** 3


def set_keep_ratio(channel_masks: Iterable[ChannelMask], keep: float) -> None:
    """Give all masks the same budget, without waiting for the device."""
    if not 0 < keep <= 1:
        raise ConfigError(f"method.keep_ratio={keep}: above 0 and at most 1 is needed, such as method.keep_ratio=0.5")
    for mask in channel_masks:
        mask.keep.fill_(keep)


def harden(channel_masks: Sequence[ChannelMask], keep: float) -> None:
    """End the first stage: whatever the kind, the best filters of the budget are on, and go on as topk_ste."""
    set_keep_ratio(channel_masks, keep)
    for mask in channel_masks:
        mask.kind = "topk_ste"
