"""BatchNorm over the batch of all processes, as one process normalises by it; torch's own knows no CPU."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["local_batchnorm", "synchronise_batchnorm"]


def synchronise_batchnorm(module: nn.Module) -> None:
    """Let every BatchNorm in `module` that is in training mode take its statistics over all processes."""
    for part in module.modules():
        if isinstance(part, _BatchNorm):
            part.forward = partial(_forward, part)  # type: ignore[method-assign]


def local_batchnorm(module: nn.Module) -> None:
    """Undo `synchronise_batchnorm`."""
    for part in module.modules():
        if isinstance(part, _BatchNorm):
            part.__dict__.pop("forward", None)


class _Sum(torch.autograd.Function):
    """The sum over all processes; each one's gradient is the sum of all their gradients."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total


def _forward(norm: _BatchNorm, value: Tensor) -> Tensor:
    """y = (x - mean) / sqrt(var + eps) * weight + bias, with mean and biased variance over all processes' samples."""
    if not norm.training:
        return type(norm).forward(norm, value)
    rows = value.float().movedim(1, -1).flatten(0, -2)
    count = _Sum.apply(rows.new_full((1,), len(rows)))
    mean = _Sum.apply(rows.sum(0)) / count
    centred = rows - mean
    variance = _Sum.apply(centred.square().sum(0)) / count
    _remember(norm, mean.detach(), (variance * count / (count - 1)).detach())
    scaled = centred * torch.rsqrt(variance + norm.eps)
    if norm.affine:
        scaled = scaled * norm.weight + norm.bias
    return scaled.view(*value.movedim(1, -1).shape).movedim(-1, 1).to(value.dtype)


@torch.no_grad()
def _remember(norm: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    """Move the running statistics; `momentum` None is the plain average of all batches."""
    if norm.running_mean is None or norm.running_var is None or norm.num_batches_tracked is None:
        return
    norm.num_batches_tracked += 1
    share = 1 / norm.num_batches_tracked.float() if norm.momentum is None else norm.momentum
    norm.running_mean += share * (mean - norm.running_mean)
    norm.running_var += share * (variance - norm.running_var)
