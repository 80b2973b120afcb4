"""Which part of an image is seen: rectangles as arrays, so that every loader cuts the same ones."""

from __future__ import annotations

import math

import cv2
import numpy as np

from recombine.core.counter_rng import uniform

__all__ = ["center_square", "cut", "fit_whole", "random_rectangles", "scaled_squares", "whole_square"]

TRIES = 10


def center_square(heights: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """The largest centred square of each image: int64 [n, 5] = top, left, height, width, 0 (not mirrored)."""
    side = np.minimum(heights, widths)
    return np.stack([(heights - side) // 2, (widths - side) // 2, side, side, 0 * side], axis=1).astype(np.int64)


def whole_square(heights: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """The smallest centred square around each whole image, which reaches beyond it: int64 [n, 5]."""
    side = np.maximum(heights, widths)
    return np.stack([(heights - side) // 2, (widths - side) // 2, side, side, 0 * side], axis=1).astype(np.int64)


def fit_whole(image: np.ndarray, size: int) -> tuple[np.ndarray, tuple[int, int, int]]:
    """The whole of uint8 [H, W, 3] in a square [size, size, 3], as evaluation sees it; its top, left and side."""
    height, width = image.shape[:2]
    (square,) = whole_square(np.array([height]), np.array([width]))
    top, left, side, _, _ = square.tolist()
    return cut(image, square, size).copy(), (top, left, side)


def scaled_squares(
    address: tuple[int, int, int],
    index: np.ndarray,
    heights: np.ndarray,
    widths: np.ndarray,
    scale: tuple[float, float],
) -> np.ndarray:
    """Squares that show an image enlarged by a factor in `scale` (log-uniform), at any place: int64 [n, 5].

    At factor 1 the square has the longer side of the image. Along an axis on which it is larger than the image, it
    reaches beyond it. `address` as in `random_rectangles`.
    """
    seed, epoch, stream = address
    factor, down, right = (uniform(seed, epoch, index, stream + k) for k in range(3))
    factor = np.exp(math.log(scale[0]) + (math.log(scale[1]) - math.log(scale[0])) * factor)
    side = np.maximum(1, np.rint(np.maximum(heights, widths) / factor)).astype(np.int64)
    top, left = (
        np.floor(np.minimum(0, room) + draw * (np.abs(room) + 1)).astype(np.int64)
        for room, draw in ((heights - side, down), (widths - side, right))
    )
    return np.stack([top, left, side, side, 0 * side], axis=1)


def random_rectangles(
    address: tuple[int, int, int],
    index: np.ndarray,
    heights: np.ndarray,
    widths: np.ndarray,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> np.ndarray:
    """Random-resized-crop rectangles looked up by sample: int64 [n, 5] = top, left, height, width, 0.

    `address` is (seed, epoch, first stream); a fraction `scale` of the area, width / height within `ratio`
    (log-uniform), the first of ten tries that fits, otherwise the largest centred part within `ratio`: the rule of
    Szegedy et al. 2015 as torchvision words it.
    """
    seed, epoch, stream = address

    def draw(k: int) -> np.ndarray:
        return uniform(seed, epoch, index, stream + k)

    height, width = _fallback(heights, widths, ratio)
    open_ = np.ones(len(index), bool)
    for k in range(TRIES):
        area = heights * widths * (scale[0] + (scale[1] - scale[0]) * draw(2 * k))
        aspect = np.exp(math.log(ratio[0]) + (math.log(ratio[1]) - math.log(ratio[0])) * draw(2 * k + 1))
        w, h = np.rint(np.sqrt(area * aspect)).astype(np.int64), np.rint(np.sqrt(area / aspect)).astype(np.int64)
        fits = open_ & (w > 0) & (h > 0) & (w <= widths) & (h <= heights)
        height, width = np.where(fits, h, height), np.where(fits, w, width)
        open_ &= ~fits
        if not open_.any():
            break
    top = np.where(open_, (heights - height) // 2, (draw(2 * TRIES) * (heights - height + 1)).astype(np.int64))
    left = np.where(open_, (widths - width) // 2, (draw(2 * TRIES + 1) * (widths - width + 1)).astype(np.int64))
    return np.stack([top, left, height, width, 0 * top], axis=1)


def _fallback(heights: np.ndarray, widths: np.ndarray, ratio: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    heights, widths = heights.astype(np.int64), widths.astype(np.int64)
    aspect = widths / heights
    height = np.where(aspect < ratio[0], np.rint(widths / ratio[0]).astype(np.int64), heights)
    width = np.where(aspect > ratio[1], np.rint(heights * ratio[1]).astype(np.int64), widths)
    return height, width


def cut(image: np.ndarray, rectangle: np.ndarray, size: int) -> np.ndarray:
    """That part of uint8 [H, W, 3], resized to [size, size, 3] by area averaging as in FFCV, then mirrored.

    A fourth channel, a mask, takes the nearest pixel. What lies beyond the image is zero.
    Deviation: authors who used torchvision's loader resized bilinearly; here all loaders agree.
    """
    top, left, height, width, mirrored = rectangle
    part = image[max(0, top) : top + height, max(0, left) : left + width]
    beyond = max(0, -top), max(0, top + height - len(image)), max(0, -left), max(0, left + width - image.shape[1])
    if any(beyond):
        part = cv2.copyMakeBorder(part, *beyond, cv2.BORDER_CONSTANT, value=(0, 0, 0, 0))
    if part.shape[:2] != (size, size):
        whole = part
        part = cv2.resize(whole, (size, size), interpolation=cv2.INTER_AREA)
        if whole.shape[2] == 4:
            part[..., 3] = cv2.resize(whole[..., 3], (size, size), interpolation=cv2.INTER_NEAREST_EXACT)
    return part[:, ::-1] if mirrored else part
