"""Stitches: layers that map one network's features to the other's."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recombine.core.errors import ConfigError

__all__ = ["CHANNEL_AXIS", "Align", "affine_part", "aligned", "compatible", "make_stitch", "rows", "set_affine"]

CHANNEL_AXIS = {"NCHW": 1, "NC": 1, "BNC": 2, "NHWC": 3}
"""By layout of the value; all other axes of the shape have to be equal."""
MAX_RESIZE = 2
"""Largest factor between the sides of maps that are stitched with a resize."""
MAX_PREFIX = 8
"""Most tokens beside those of a square."""


def compatible(
    layout: str, shape: tuple[int, ...], other_layout: str, other_shape: tuple[int, ...], *, resize: bool = False
) -> bool:
    """Whether values of these layouts and shapes can be stitched: equal in all but channels.

    `resize`: also maps and tokens whose sides differ by a factor of at most `MAX_RESIZE`.
    """
    if layout == other_layout and len(shape) == len(other_shape):
        channels = CHANNEL_AXIS[layout]
        if all(a == b for axis, (a, b) in enumerate(zip(shape, other_shape, strict=True)) if axis != channels):
            return True
    sides, others = _sides(layout, shape), _sides(other_layout, other_shape)
    if not resize or sides is None or others is None:
        return False
    return all(1 / MAX_RESIZE <= a / b <= MAX_RESIZE for a, b in zip(sides, others, strict=True))


def _sides(layout: str, shape: tuple[int, ...]) -> tuple[int, int] | None:
    """Height and width of maps, and of tokens that fill a square beside a few others; None of anything else."""
    if layout == "NC":
        return None
    if layout == "BNC":
        side = math.isqrt(shape[1])
        return (side, side) if side and shape[1] - side**2 <= MAX_PREFIX else None
    return (shape[2], shape[3]) if layout == "NCHW" else (shape[1], shape[2])


class Align(nn.Module):
    """Maps or tokens as maps or tokens of another layout and size, channels untouched.

    Shrinks by averages and grows bilinearly. Tokens before the square (class tokens) are kept where both have them; new
    ones are the mean of all others.
    """

    def __init__(self, layout: str, shape: tuple[int, ...], out_layout: str, out_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.layout, self.out_layout = layout, out_layout
        sides, out_sides = _sides(layout, shape), _sides(out_layout, out_shape)
        if sides is None or out_sides is None:
            raise ConfigError(f"values of {layout} {shape} cannot be resized to {out_layout} {out_shape}")
        self.sides, self.out_sides = sides, out_sides
        self.prefix = shape[1] - math.prod(sides) if layout == "BNC" else 0
        self.out_prefix = out_shape[1] - math.prod(out_sides) if out_layout == "BNC" else 0

    def forward(self, value: Tensor) -> Tensor:
        """[B, ...] in the one layout -> [B, ...] in the other."""
        first = value[:, : min(self.prefix, self.out_prefix)] if self.layout == "BNC" else None
        if self.layout == "BNC":
            maps = value[:, self.prefix :].transpose(1, 2).unflatten(2, self.sides)
        else:
            maps = value.movedim(CHANNEL_AXIS[self.layout], 1)
        if self.sides != self.out_sides:
            shrinks = all(new <= old for new, old in zip(self.out_sides, self.sides, strict=True))
            maps = (
                F.adaptive_avg_pool2d(maps, self.out_sides)
                if shrinks
                else F.interpolate(maps, self.out_sides, mode="bilinear")
            )
        if self.out_layout != "BNC":
            return maps.movedim(1, CHANNEL_AXIS[self.out_layout])
        tokens = maps.flatten(2).transpose(1, 2)
        kept = 0 if first is None else first.shape[1]
        new = tokens.mean(1, keepdim=True).expand(-1, self.out_prefix - kept, -1)
        return torch.cat([new, tokens] if first is None else [first, new, tokens], 1)


def make_stitch(layout: str, shape: tuple[int, ...], out_layout: str, out_shape: tuple[int, ...]) -> nn.Module:
    """A 1x1 convolution for maps [B, C, H, W], a linear layer on the last axis for vectors, tokens and [B, H, W, C].

    Behind an `Align` where layouts or sizes differ.
    """
    if layout not in CHANNEL_AXIS or out_layout not in CHANNEL_AXIS:
        raise ConfigError(f"there is no stitch from {layout} to {out_layout}; known: {', '.join(CHANNEL_AXIS)}")
    channels, out_channels = shape[CHANNEL_AXIS[layout]], out_shape[CHANNEL_AXIS[out_layout]]
    affine = nn.Conv2d(channels, out_channels, 1) if out_layout == "NCHW" else nn.Linear(channels, out_channels)
    if compatible(layout, shape, out_layout, out_shape):
        return affine
    return nn.Sequential(Align(layout, shape, out_layout, out_shape), affine)


def affine_part(stitch: nn.Module) -> Any:
    """The convolution or linear layer of a stitch."""
    return stitch[-1] if isinstance(stitch, nn.Sequential) else stitch


def aligned(stitch: nn.Module, value: Tensor) -> Tensor:
    """What the affine part of a stitch reads."""
    return stitch[0](value) if isinstance(stitch, nn.Sequential) else value


def rows(value: Tensor, layout: str) -> Tensor:
    """A value as rows of channels [N, C]: one row for each image, pixel or token."""
    return value.movedim(CHANNEL_AXIS[layout], -1).flatten(0, -2)


@torch.no_grad()
def set_affine(stitch: nn.Module, weight: Tensor, bias: Tensor) -> None:
    """Make a stitch the map x -> weight x + bias; `weight` [C_out, C_in]."""
    affine = affine_part(stitch)
    affine.weight.copy_(weight.view_as(affine.weight))
    affine.bias.copy_(bias)
