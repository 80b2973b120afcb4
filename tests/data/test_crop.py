"""Crop rectangles against a slow twin, torchvision's distribution and plain slicing."""

from __future__ import annotations

import math

import cv2
import numpy as np
import torch
from scipy.stats import ks_2samp
from torchvision.transforms import RandomResizedCrop

from recombine.core.counter_rng import uniform
from recombine.data.crop import center_square, cut, random_rectangles

SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)


def slow_rectangle(seed, epoch, i, height, width, scale, ratio):
    for k in range(10):
        area = height * width * (scale[0] + (scale[1] - scale[0]) * uniform(seed, epoch, i, 2 * k))
        low, high = math.log(ratio[0]), math.log(ratio[1])
        aspect = math.exp(low + (high - low) * uniform(seed, epoch, i, 2 * k + 1))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top = int(uniform(seed, epoch, i, 20) * (height - h + 1))
            return top, int(uniform(seed, epoch, i, 21) * (width - w + 1)), h, w
    if width / height < ratio[0]:
        h, w = round(width / ratio[0]), width
    elif width / height > ratio[1]:
        h, w = height, round(height * ratio[1])
    else:
        h, w = height, width
    return (height - h) // 2, (width - w) // 2, h, w


def test_rectangles_equal_the_slow_twin():
    rng = np.random.default_rng(0)
    heights, widths = rng.integers(1, 600, (2, 400))
    heights[:20], widths[:20] = 10, 900  # nothing fits here: the fallback
    index = rng.integers(0, 10**7, 400)
    fast = random_rectangles((5, 3, 0), index, heights, widths, SCALE, RATIO)
    rows = np.stack([index, heights, widths], axis=1).tolist()
    slow = [slow_rectangle(5, 3, *row, SCALE, RATIO) for row in rows]
    assert np.array_equal(fast[:, :4], slow) and not fast[:, 4].any()
    top, left, height, width = fast.T[:4]
    assert (top >= 0).all() and (left >= 0).all() and (height > 0).all() and (width > 0).all()
    assert (top + height <= heights).all() and (left + width <= widths).all()


def test_rectangles_are_distributed_as_torchvisions():
    n, height, width = 3000, 240, 320
    ours = random_rectangles((1, 0, 0), np.arange(n), np.full(n, height), np.full(n, width), SCALE, RATIO)
    torch.manual_seed(0)
    image = torch.zeros(3, height, width)
    theirs = np.array([RandomResizedCrop.get_params(image, list(SCALE), list(RATIO)) for _ in range(n)])
    for side in range(4):
        assert ks_2samp(ours[:, side], theirs[:, side]).pvalue > 0.001
    assert ks_2samp(ours[:, 2] * ours[:, 3], theirs[:, 2] * theirs[:, 3]).pvalue > 0.001


def test_rectangles_change_with_epoch_seed_and_sample():
    sides = np.full(50, 300)

    def at(seed, epoch, first):
        return random_rectangles((seed, epoch, 0), np.arange(first, first + 50), sides, sides, SCALE, RATIO)

    assert np.array_equal(at(0, 0, 0), at(0, 0, 0))
    assert all((at(0, 0, 0) != other).any(1).all() for other in (at(0, 1, 0), at(1, 0, 0), at(0, 0, 50)))


def test_centre_square_and_cut():
    assert center_square(np.array([5, 8]), np.array([9, 3])).tolist() == [[0, 2, 5, 5, 0], [2, 0, 3, 3, 0]]
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    assert np.array_equal(cut(image, (3, 7, 20, 20, 0), 20), image[3:23, 7:27])
    assert np.array_equal(cut(image, (3, 7, 20, 20, 1), 20), image[3:23, 7:27][:, ::-1])
    means = image[:, :40].reshape(20, 2, 20, 2, 3).mean((1, 3))
    assert np.array_equal(cut(image, (0, 0, 40, 40, 0), 20), np.floor(means + 0.5))
    expected = cv2.resize(image[1:31, 2:52], (24, 24), interpolation=cv2.INTER_AREA)
    assert np.array_equal(cut(image, (1, 2, 30, 50, 0), 24), expected)
