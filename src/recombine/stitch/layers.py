"""Stitches: layers that map one network's features to the other's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from recombine.core.errors import ConfigError

__all__ = ["CHANNEL_AXIS", "compatible", "make_stitch", "rows", "set_affine"]

CHANNEL_AXIS = {"NCHW": 1, "NC": 1, "BNC": 2, "NHWC": 3}
"""By layout of the value; all other axes of the shape have to be equal."""


def compatible(layout: str, shape: tuple[int, ...], other_layout: str, other_shape: tuple[int, ...]) -> bool:
    """Whether values of these layouts and shapes can be stitched: equal in all but channels."""
    if layout != other_layout or len(shape) != len(other_shape):
        return False
    channels = CHANNEL_AXIS[layout]
    return all(a == b for axis, (a, b) in enumerate(zip(shape, other_shape, strict=True)) if axis != channels)


def make_stitch(layout: str, channels: int, out_channels: int) -> nn.Conv2d | nn.Linear:
    """A 1x1 convolution for maps [B, C, H, W], a linear layer on the last axis for vectors, tokens and [B, H, W, C]."""
    if layout == "NCHW":
        return nn.Conv2d(channels, out_channels, 1)
    if layout in CHANNEL_AXIS:
        return nn.Linear(channels, out_channels)
    raise ConfigError(f"there is no stitch for values laid out as {layout}; known: {', '.join(CHANNEL_AXIS)}")


def rows(value: Tensor, layout: str) -> Tensor:
    """A value as rows of channels [N, C]: one row for each image, pixel or token."""
    return value.movedim(CHANNEL_AXIS[layout], -1).flatten(0, -2)


@torch.no_grad()
def set_affine(stitch: Any, weight: Tensor, bias: Tensor) -> None:
    """Make a stitch the map x -> weight x + bias; `weight` [C_out, C_in]."""
    stitch.weight.copy_(weight.view_as(stitch.weight))
    stitch.bias.copy_(bias)
