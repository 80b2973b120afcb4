"""Augmentation of whole batches on the device, uint8 in and uint8 out, every number looked up by sample.

An operation is called with images [B, 3, H, W] and `draw(k)`, its k-th random number per sample (float64 [B] in
[0, 1)). `Augment` binds the draws to (seed, epoch, sample index), so loader, world size, batch size and resuming
cannot change what a sample looks like in an epoch. Values are kept in float inside an operation and rounded once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recombine.core.builds import Node, load_target
from recombine.core.counter_rng import uniform
from recombine.core.errors import ConfigError
from recombine.data.augment_settings import nodes_of, problems_of
from recombine.data.crop import random_rectangles, scaled_squares

__all__ = ["Augment", "ColorDistortion", "Crop", "Grayscale", "HorizontalFlip", "Operation", "PadCrop"]
__all__ += ["RandomResizedCrop", "RandomScaleCrop", "Rotation", "build", "refuse_moves"]

Draw = Callable[[int], Tensor]
STREAMS = 32
"""Random numbers per sample an operation may look up."""
GREY = (0.299, 0.587, 0.114)


class Operation:
    """What `dataset.augment` lists: custom ones are derived from this class."""

    moves_pixels: bool | None = None
    """Whether it moves pixels, and so those of masks too, or changes their colours alone. Where it leaves a place
    empty, it puts zeros there. Has to be said by operations on images with masks."""

    def __call__(self, images: Tensor, draw: Draw) -> Tensor:
        """Images uint8 [B, 3, H, W], changed by the random numbers `draw(k)`, k below STREAMS, float64 [B]."""
        raise TypeError(f"{type(self).__name__} defines no __call__(images, draw)")


class HorizontalFlip(Operation):
    """Mirror left and right with probability `p`."""

    moves_pixels = True

    def __init__(self, p: float = 0.5) -> None:
        self.p = p

    def __call__(self, images: Tensor, draw: Draw) -> Tensor:
        return _pick(draw(0) < self.p, images.flip(-1), images)


class PadCrop(Operation):
    """Pad every side by `padding` pixels (zero or reflect), then cut a window of the old size anywhere."""

    moves_pixels = True

    def __init__(self, padding: int = 4, mode: str = "zero") -> None:
        self.padding, self.mode = padding, mode

    def __call__(self, images: Tensor, draw: Draw) -> Tensor:
        height, width = images.shape[-2:]
        top, left = (torch.floor(draw(k) * (2 * self.padding + 1)).long() - self.padding for k in (0, 1))
        rows = torch.arange(height, device=images.device) + top[:, None]
        columns = torch.arange(width, device=images.device) + left[:, None]
        inside = ((rows >= 0) & (rows < height))[:, None, :, None] & ((columns >= 0) & (columns < width))[:, None, None]
        rows, columns = _mirror(rows, height), _mirror(columns, width)
        sample = torch.arange(len(images), device=images.device)[:, None, None]
        moved = images.permute(0, 2, 3, 1)[sample, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
        return moved if self.mode == "reflect" else moved * inside


class ColorDistortion(Operation):
    """With probability `p` change brightness, contrast, saturation, then hue.

    The first three factors are uniform in [max(0, 1 - 0.8 s), 1 + 0.8 s] and the hue shift in [-0.2 s, 0.2 s] turns,
    with strength s, in this order (training data of Fantastic Gains; SimCLR appendix A).
    """

    moves_pixels = False

    def __init__(self, strength: float = 1.0, p: float = 0.8) -> None:
        self.strength, self.p = strength, p

    def __call__(self, images: Tensor, draw: Draw) -> Tensor:
        low, high = max(0.0, 1 - 0.8 * self.strength), 1 + 0.8 * self.strength
        brightness, contrast, saturation = (low + (high - low) * draw(k) for k in (1, 2, 3))
        hue = 0.2 * self.strength * (2 * draw(4) - 1)
        return _pick(draw(0) < self.p, self.apply(images, brightness, contrast, saturation, hue), images)

    @staticmethod
    def apply(images: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor, hue: Tensor) -> Tensor:
        """The four changes with given factors [B] and hue shifts [B] in turns."""
        brightness, contrast, saturation, hue = (
            value.to(torch.float32)[:, None, None, None] for value in (brightness, contrast, saturation, hue)
        )
        x = (images.float() * brightness).clamp(0, 255)
        x = torch.lerp(_grey(x).mean((1, 2, 3), keepdim=True), x, contrast).clamp(0, 255)
        x = torch.lerp(_grey(x), x, saturation).clamp(0, 255)
        return _rounded(_turn_hue(x, hue))


class Grayscale(Operation):
    """Replace the colours by their luminance with probability `p`."""

    moves_pixels = False

    def __init__(self, p: float = 0.2) -> None:
        self.p = p

    def __call__(self, images: Tensor, draw: Draw) -> Tensor:
        grey = _rounded(_grey(images.float())).expand_as(images)
        return _pick(draw(0) < self.p, grey, images)


class Rotation(Operation):
    """Rotate about the centre by an angle uniform in [-degrees, degrees]; nearest pixel, black outside."""

    moves_pixels = True

    def __init__(self, degrees: float = 15.0) -> None:
        self.degrees = degrees

    def __call__(self, images: Tensor, draw: Draw) -> Tensor:
        return self.apply(images, self.degrees * (2 * draw(0) - 1))

    @staticmethod
    def apply(images: Tensor, degrees: Tensor) -> Tensor:
        """Rotate counter-clockwise by `degrees` [B]."""
        height, width = images.shape[-2:]
        angle = torch.deg2rad(degrees)
        cos, sin = torch.cos(angle)[:, None, None], torch.sin(angle)[:, None, None]
        y = torch.arange(height, device=images.device, dtype=torch.float64)[:, None] - (height - 1) / 2
        x = torch.arange(width, device=images.device, dtype=torch.float64)[None, :] - (width - 1) / 2
        columns = torch.round(cos * x - sin * y + (width - 1) / 2).long()
        rows = torch.round(sin * x + cos * y + (height - 1) / 2).long()
        inside = ((rows >= 0) & (rows < height) & (columns >= 0) & (columns < width))[:, None]
        sample = torch.arange(len(images), device=images.device)[:, None, None]
        rows, columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
        return images.permute(0, 2, 3, 1)[sample, rows, columns].permute(0, 3, 1, 2) * inside


class Crop:
    """Cut a random part, mirror it with probability `flip`, resize it to the output size.

    Done while decoding (crop.py), so it must come first; a flip costs less there than as a separate operation.
    """

    flip: float

    def parts(self, address: tuple[int, int, int], index: np.ndarray, heights: np.ndarray, widths: np.ndarray) -> Any:
        """The part of each image, int64 [n, 5] = top, left, height, width, 0, from random numbers at `address`."""
        raise TypeError(f"{type(self).__name__} defines no parts")

    def rectangles(
        self, address: tuple[int, int], index: np.ndarray, heights: np.ndarray, widths: np.ndarray
    ) -> np.ndarray:
        """The parts seen at (seed, epoch), int64 [n, 5] = top, left, height, width, whether mirrored."""
        parts = self.parts((*address, 0), index, heights, widths)
        parts[:, 4] = uniform(*address, index, STREAMS - 1) < self.flip
        return parts


class RandomResizedCrop(Crop):
    """A part of a random area and shape, see `crop.random_rectangles`."""

    def __init__(
        self, scale: Sequence[float] = (0.08, 1.0), ratio: Sequence[float] = (3 / 4, 4 / 3), flip: float = 0.0
    ) -> None:
        self.scale, self.ratio, self.flip = (scale[0], scale[1]), (ratio[0], ratio[1]), flip

    def parts(self, address: tuple[int, int, int], index: np.ndarray, heights: np.ndarray, widths: np.ndarray) -> Any:
        """As `Crop.parts`."""
        return random_rectangles(address, index, heights, widths, self.scale, self.ratio)


class RandomScaleCrop(Crop):
    """A square of the image enlarged or shrunk, padded where it is smaller: usual for segmentation."""

    def __init__(self, scale: Sequence[float] = (0.5, 2.0), flip: float = 0.5) -> None:
        self.scale, self.flip = (scale[0], scale[1]), flip

    def parts(self, address: tuple[int, int, int], index: np.ndarray, heights: np.ndarray, widths: np.ndarray) -> Any:
        """As `Crop.parts`."""
        return scaled_squares(address, index, heights, widths, self.scale)


class Augment:
    """A list of operations applied to training batches; `crop` is the part that happens while decoding."""

    def __init__(self, operations: Sequence, seed: int) -> None:
        self.seed = seed
        self.crop = operations[0] if operations and isinstance(operations[0], Crop) else None
        self.operations = list(operations)[1 if self.crop else 0 :]

    def __call__(self, images: Tensor, index: Tensor, epoch: int) -> Tensor:
        """Augmented uint8 [B, 3, H, W] (channels_last) of the samples `index` [B] in `epoch`.

        A fourth channel, a mask, goes through what moves pixels.
        """
        for position, operation in enumerate(self.operations, start=1):

            def draw(k: int, first: int = STREAMS * position) -> Tensor:
                return uniform(self.seed, epoch, index, first + k)

            if images.shape[1] == 3 or _moves_pixels(operation):
                images = operation(images, draw)
            else:
                images = torch.cat([operation(images[:, :3], draw), images[:, 3:]], 1)
        return images.contiguous(memory_format=torch.channels_last)


def build(augment: str | Sequence[Node] | None) -> list[Any]:
    """Operations of a preset's name or a list of nodes `{_target_: package.Class, option: value}`; ConfigError."""
    if problems := problems_of(augment, "dataset.augment"):
        raise ConfigError(problems)
    return [
        load_target("dataset.augment", node["_target_"])(**{k: v for k, v in node.items() if k != "_target_"})
        for node in nodes_of(augment)
    ]


def _moves_pixels(operation: Any) -> bool:
    moves = getattr(operation, "moves_pixels", None)
    if moves is None:
        name = type(operation).__name__
        raise ConfigError(f"dataset.augment: {name} has to say moves_pixels = True or False, as labels have places")
    return moves


def refuse_moves(augment: Augment) -> None:
    """Raise ConfigError for operations that move pixels on images with boxes; a crop moves the boxes too."""
    for operation in augment.operations:
        if _moves_pixels(operation):
            name = type(operation).__name__
            raise ConfigError(f"dataset.augment: {name} moves no boxes: dataset.augment=scale_crop, which mirrors too")


def _pick(chosen: Tensor, changed: Tensor, images: Tensor) -> Tensor:
    """`changed` where `chosen` [B], else `images`, copied by sample: faster than a broadcast torch.where."""
    both = torch.cat([part.permute(0, 2, 3, 1) for part in (images, changed)])
    rows = torch.arange(len(images), device=images.device) + len(images) * chosen
    return both.index_select(0, rows).permute(0, 3, 1, 2)


def _rounded(x: Tensor) -> Tensor:
    return x.round().clamp(0, 255).to(torch.uint8)


def _grey(x: Tensor) -> Tensor:
    red, green, blue = (weight * x[:, k : k + 1] for k, weight in enumerate(GREY))
    return red + green + blue


def _mirror(position: Tensor, length: int) -> Tensor:
    """Reflect positions that lie outside 0..length-1 without repeating the border."""
    position = position.abs()
    return torch.where(position >= length, 2 * (length - 1) - position, position).clamp(0, length - 1)


def _turn_hue(x: Tensor, turns: Tensor) -> Tensor:
    """Rotate the hue of float [B, 3, H, W] in 0..255 by `turns`, through the HSV hexagon (Smith 1978)."""
    value, low = x.amax(1, keepdim=True), x.amin(1, keepdim=True)
    span = value - low
    red, green, blue = x.split(1, dim=1)
    safe = span.clamp(min=1e-6)
    sector = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    sector = sector + 6 * turns
    offsets = torch.arange(5, 0, -2, device=x.device)[:, None, None]  # 5, 3, 1 for red, green, blue
    k = torch.remainder(offsets + sector, 6.0)
    return value - span * torch.minimum(k, 4 - k).clamp(0, 1)
