"""What stands between the target's features and the cloned layers: a small linear map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recombine.core.distributed import all_reduce_sum
from recombine.core.errors import ConfigError
from recombine.pnc.clone.positions import Position

__all__ = ["LeastSquares", "make_adapter", "pool"]

NARROWING = 4
"""A bottleneck has so many times fewer channels than the narrower side."""


def pool(value: Tensor) -> Tensor:
    """Features [B, C]: of maps [B, C, H, W] their means."""
    return value.flatten(2).mean(2) if value.ndim > 2 else value


class Resized(nn.Module):
    """Maps [B, C, H, W] at another height and width, bilinear."""

    def __init__(self, size: Sequence[int]) -> None:
        super().__init__()
        self.size = tuple(size)

    def forward(self, value: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, *size]."""
        return F.interpolate(value, self.size, mode="bilinear", align_corners=False)


def make_adapter(position: Position, kind: str) -> nn.Module:
    """From the target's features at a position to the source's.

    Starts near the identity where both have as many channels, else as PyTorch starts such a layer. Feature vectors get
    a linear layer whatever the kind; where the other side has maps, these count by their means. A bottleneck is two 1x1
    convolutions; Ours: no adapter has a non-linearity.
    """
    (inputs, *size), (outputs, *new_size) = position.target.shape, position.source.shape
    if kind == "none":
        if position.target.shape != position.source.shape:
            raise ConfigError(
                f"method.adapter=none needs features of one shape, but at {position.label} they are "
                f"{list(position.target.shape)} and {list(position.source.shape)}: method.adapter=conv1x1_bn"
            )
        return nn.Identity()
    if not size or not new_size:
        before = [nn.AdaptiveAvgPool2d(1), nn.Flatten()] if size else []
        after = [nn.Unflatten(1, (outputs, 1, 1)), Resized(new_size)] if new_size else []
        linear = _near_identity(nn.Linear(inputs, outputs))
        return nn.Sequential(*before, linear, *after) if before or after else linear
    layers: list[nn.Module] = [] if size == new_size else [Resized(new_size)]
    if kind == "bottleneck":
        narrow = max(1, min(inputs, outputs) // NARROWING)
        layers += [nn.Conv2d(inputs, narrow, 1, bias=False), nn.Conv2d(narrow, outputs, 1, bias=False)]
    else:
        side = 3 if "3x3" in kind else 1
        layers.append(_near_identity(nn.Conv2d(inputs, outputs, side, padding=side // 2, bias=False)))
    return nn.Sequential(*layers, *([] if kind == "conv1x1" else [nn.BatchNorm2d(outputs)]))


def _near_identity(layer: nn.Linear | nn.Conv2d) -> nn.Module:
    weight = layer.weight.data
    if weight.shape[0] == weight.shape[1]:
        weight.normal_(std=1e-3)
        centre = weight[..., weight.shape[2] // 2, weight.shape[3] // 2] if weight.ndim == 4 else weight
        centre += torch.eye(weight.shape[0])
        if layer.bias is not None:
            layer.bias.data.zero_()
    return layer


class LeastSquares:
    """Collects what the best linear adapter is solved from, batch by batch: moments of both networks' features.

    The rows are the pixels of the maps (or the vectors) of all samples; the values under a convolution's kernel and a
    one, for the intercept, are their regressors.
    """

    def __init__(self, adapter: nn.Module) -> None:
        self.adapter = adapter
        self.resized = [part for part in adapter.modules() if isinstance(part, Resized)]
        self.layers: list[Any] = [part for part in adapter.modules() if isinstance(part, nn.Conv2d | nn.Linear)]
        self.moments: list[Tensor] = []

    @torch.no_grad()
    def add(self, target: Tensor, source: Tensor) -> None:
        """One batch: features [B, C_t, ...] of the target and [B, C_s, ...] of the source at their cuts."""
        if target.ndim != source.ndim:
            target, source = pool(target), pool(source)
        elif target.ndim == 4:
            for resized in self.resized:
                target = resized(target)
            layer = self.layers[0]
            target = F.unfold(target, layer.kernel_size, padding=layer.padding).mT.flatten(0, 1)
            source = source.flatten(2).mT.flatten(0, 1)
        rows = F.pad(target.double(), (0, 1), value=1.0)
        found = [rows.mT @ rows, rows.mT @ source.double()]
        self.moments = [a + b for a, b in zip(self.moments, found, strict=True)] if self.moments else found

    @torch.no_grad()
    def solve(self) -> None:
        """Give the adapter, in place, the map that comes closest to the source's features, evaluated.

        A bottleneck gets the best map of its rank (reduced-rank regression). A convolution without BatchNorm has no
        intercept. Singular moments, as of channels that are never active, take the smallest weights.
        """
        gram, cross = (all_reduce_sum(moment) for moment in self.moments)
        norm = next((part for part in self.adapter.modules() if isinstance(part, nn.BatchNorm2d)), None)
        first, bias = self.layers[0], self.layers[0].bias
        if norm is None and bias is None:
            gram, cross = gram[:-1, :-1], cross[:-1]
        theta = torch.linalg.pinv(gram, hermitian=True) @ cross
        if bias is not None:
            bias.copy_(theta[-1])
        if norm is not None:
            first.weight.copy_(self._normalised(norm, theta, gram).view_as(first.weight))
        else:
            first.weight.copy_(theta[: first.weight[0].numel()].mT.view_as(first.weight))

    def _normalised(self, norm: Any, theta: Tensor, gram: Tensor) -> Tensor:
        """The first layer's weights, with the norm made so that all of it gives [h, 1] theta, and that alone."""
        mean = gram[-1, :-1] / gram[-1, -1]
        spread = gram[:-1, :-1] / gram[-1, -1] - mean[:, None] * mean
        weight, bias = theta[:-1].mT, theta[:-1].mT @ mean + theta[-1]
        first = weight
        if len(self.layers) == 2:
            narrow = self.layers[0].out_channels
            directions = torch.linalg.eigh(weight @ spread @ weight.mT).eigenvectors[:, -narrow:]
            self.layers[1].weight.copy_(directions[..., None, None])
            first = directions.mT @ weight
            weight = directions @ first
        norm.running_mean.copy_(weight @ mean)
        norm.running_var.copy_(((weight @ spread) * weight).sum(1).clamp(min=0))
        norm.weight.copy_((norm.running_var + norm.eps).sqrt())
        norm.bias.copy_(bias)
        return first
