"""Squares, discs and crosses in noise."""

from pathlib import Path

import numpy as np

from recombine.data import Arrays, Found

__all__ = ["draw_shapes"]


def draw_shapes(folder: Path, *, images: int = 600, noise: float = 25.0) -> Found:
    """`images` training images and a third as many test images, uint8 [N, 32, 32]; `folder` (data_root) is not read."""

    def draw(seed: int, count: int) -> Arrays:
        rng = np.random.default_rng(seed)
        labels = np.arange(count) % 3
        y, x = np.mgrid[:32, :32]
        drawn = np.empty((count, 32, 32), np.uint8)
        for image, label in zip(drawn, labels, strict=True):
            row, column = rng.uniform(10, 22, 2)
            far = np.abs([y - row, x - column])
            inside = (far.max(0) < 6, np.hypot(*far) < 7, (far.min(0) < 2) & (far.max(0) < 8))[label]
            image[:] = np.clip(110 + 70 * inside + rng.normal(0, noise, (32, 32)), 0, 255)
        return Arrays(drawn, labels)

    return Found({"train": lambda: draw(1, images), "test": lambda: draw(2, images // 3)}, ["square", "disc", "cross"])
