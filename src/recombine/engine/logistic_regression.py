"""A linear classifier on features that are kept: the same one each time, without a learning rate to choose."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["logistic_regression"]

LEAST = 0.1
"""Smallest standard deviation that features are divided by, as a part of the root mean square of all."""


def logistic_regression(
    features: Tensor, labels: Tensor, classes: int, penalty: float = 1e-3, steps: int = 100
) -> tuple[Tensor, Tensor]:
    """Weight [C, D] and bias [C] of a softmax regression on features [n, D] by L-BFGS.

    `penalty` is half the weight of ||W||^2 for standardised features, in a mean over the samples. Features that hardly
    vary count as if they varied by `LEAST` of the others: enlarged to the size of these, they decide on images where
    they do vary.
    """
    mean, std = features.mean(0), features.std(0)
    std = torch.maximum(std, (LEAST * std.square().mean().sqrt()).clamp(min=1e-6))
    x = (features - mean) / std
    weight = torch.zeros(classes, x.shape[1], device=x.device, requires_grad=True)
    bias = torch.zeros(classes, device=x.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=steps, line_search_fn="strong_wolfe")

    def objective() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(x @ weight.T + bias, labels) + penalty * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(objective)
    with torch.no_grad():
        weight = weight / std
        return weight, bias - weight @ mean
