"""What an offspring with two outputs answers: the mean of logits or probabilities, weighted equally or as learned."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

__all__ = ["Mean", "OutputEnsemble"]

Mean = Literal["logits", "probs"]
"""What is averaged."""


class OutputEnsemble(nn.Module):
    """Logits of both outputs -> w A + (1 - w) B of the logits, or the logarithm of that mean of their probabilities.

    w = sigmoid(share), one number for all offspring of a supernetwork: 1/2 unless it is trained.
    """

    def __init__(self, mean: Mean = "logits") -> None:
        super().__init__()
        self.mean = mean
        self.share = nn.Parameter(torch.zeros(()), requires_grad=False)

    @property
    def plain(self) -> bool:
        """Whether it is the mean of the logits, as in the paper."""
        return self.mean == "logits" and float(self.share) == 0

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """[B, C, ...] of both -> the same shape."""
        weight = self.share.sigmoid()
        if self.mean == "logits":
            return weight * a + (1 - weight) * b
        first, second = a.float().log_softmax(1), b.float().log_softmax(1)
        return torch.logaddexp(first + weight.log(), second + (1 - weight).log())
