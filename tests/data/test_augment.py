"""Each operation against torchvision given the same parameters, and what addressing promises."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as F

from recombine.core.counter_rng import uniform
from recombine.core.errors import ConfigError
from recombine.data.augment import (
    STREAMS,
    Augment,
    ColorDistortion,
    Grayscale,
    HorizontalFlip,
    PadCrop,
    RandomResizedCrop,
    Rotation,
    build,
)
from recombine.data.augment_settings import PRESETS


@pytest.fixture
def images():
    noise = torch.randint(0, 256, (24, 3, 24, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    noise[0], noise[1, 1:], noise[2] = 0, 0, 255  # black, pure red, white
    return noise.contiguous(memory_format=torch.channels_last)


INDEX = torch.arange(100, 124)


def draws(seed, epoch, position, index=INDEX):
    return lambda k: uniform(seed, epoch, index, STREAMS * position + k)


def difference(ours, theirs):
    return int((ours.int() - theirs.int()).abs().max())


def test_flip_equals_torchvision(images):
    ours = Augment([HorizontalFlip(0.5)], 7)(images, INDEX, 2)
    chosen = draws(7, 2, 1)(0) < 0.5
    assert 4 < chosen.sum() < 20
    theirs = torch.stack([F.horizontal_flip(x) if flip else x for x, flip in zip(images, chosen, strict=True)])
    assert difference(ours, theirs) == 0


@pytest.mark.parametrize(("mode", "padding_mode"), [("zero", "constant"), ("reflect", "reflect")])
def test_pad_crop_equals_torchvision(images, mode, padding_mode):
    ours = Augment([PadCrop(4, mode)], 7)(images, INDEX, 2)
    tops, lefts = ((draws(7, 2, 1)(k) * 9).long().tolist() for k in (0, 1))
    assert len(set(tops)) >= 7 and len(set(lefts)) >= 7
    padded = F.pad(images, [4, 4, 4, 4], padding_mode=padding_mode)
    theirs = torch.stack([F.crop(x, t, le, 24, 24) for x, t, le in zip(padded, tops, lefts, strict=True)])
    assert difference(ours, theirs) == 0


def test_grayscale_equals_torchvision_to_one_level(images):
    ours = Augment([Grayscale(0.5)], 7)(images, INDEX, 2)
    chosen = draws(7, 2, 1)(0) < 0.5
    theirs = torch.where(chosen[:, None, None, None], F.rgb_to_grayscale(images, 3), images)
    assert difference(ours, theirs) <= 1


def test_rotation_equals_torchvision(images):
    degrees = torch.linspace(-15, 15, 24, dtype=torch.float64)
    ours = Rotation.apply(images, degrees)
    theirs = torch.stack([F.rotate(x, float(angle)) for x, angle in zip(images, degrees, strict=True)])
    # torchvision computes in float32: a pixel that falls halfway between two may take the other one
    assert (ours != theirs).float().mean() < 0.001


@pytest.mark.parametrize("part", ["brightness", "contrast", "saturation", "hue"])
def test_each_colour_change_equals_torchvision(images, part):
    amount = torch.linspace(-0.2, 0.2, 24) if part == "hue" else torch.linspace(0.2, 1.8, 24)
    neutral = {"brightness": torch.ones(24), "contrast": torch.ones(24), "saturation": torch.ones(24)}
    ours = ColorDistortion.apply(images, **{**neutral, "hue": torch.zeros(24), part: amount})
    adjust = getattr(F, f"adjust_{part}")
    theirs = torch.stack([adjust(x, float(a)) for x, a in zip(images, amount, strict=True)])
    floating = torch.stack([adjust(x / 255, float(a)) for x, a in zip(images, amount, strict=True)]) * 255
    assert difference(ours, floating.round()) <= (0 if part == "brightness" else 1)
    assert difference(ours, theirs) <= 2  # torchvision's uint8 versions round down between their steps


def test_whole_distortion_follows_the_spec(images):
    ours = Augment([ColorDistortion()], 7)(images, INDEX, 2)
    draw = draws(7, 2, 1)
    for i, image in enumerate(images):
        factors = [0.2 + 1.6 * float(draw(k)[i]) for k in (1, 2, 3)]
        expected = image / 255
        if draw(0)[i] < 0.8:
            expected = F.adjust_brightness(expected, factors[0])
            expected = F.adjust_contrast(expected, factors[1])
            expected = F.adjust_saturation(expected, factors[2])
            expected = F.adjust_hue(expected, 0.4 * float(draw(4)[i]) - 0.2)
        assert difference(ours[i], (expected * 255).round()) <= 1


def test_frequencies_of_the_paper():
    index = torch.arange(4000)
    images = torch.tensor([200, 100, 50], dtype=torch.uint8)[None, :, None, None].repeat(4000, 1, 2, 2)
    images[..., 0] //= 2
    grey = Augment(build("paper_transfer")[2:], 0)(images, index, 0)
    assert abs(float((grey[:, 0] == grey[:, 2]).all((1, 2)).float().mean()) - 0.2) < 0.02
    coloured = Augment(build("paper_transfer")[1:2], 0)(images, index, 0)
    assert abs(float((coloured != images).flatten(1).any(1).float().mean()) - 0.8) < 0.02


@pytest.mark.parametrize("preset", [name for name in PRESETS if name != "crop_resize"])
def test_a_sample_does_not_depend_on_its_batch(images, preset):
    augment = Augment(build(preset), 3)
    whole = augment(images, INDEX, 5)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(1))
    parts = [augment(images[rows], INDEX[rows], 5) for rows in order.split(7)]
    assert torch.equal(torch.cat(parts), whole[order])
    assert whole.dtype == torch.uint8 and whole.is_contiguous(memory_format=torch.channels_last)
    if augment.operations:
        assert not torch.equal(whole, augment(images, INDEX, 6))
        assert not torch.equal(whole, Augment(build(preset), 4)(images, INDEX, 5))


def test_operations_use_different_random_numbers():
    seen = {}

    class Spy:
        def __init__(self, name):
            self.name = name

        def __call__(self, images, draw):
            seen[self.name] = torch.stack([draw(k) for k in range(STREAMS)])
            return images

    Augment([Spy("a"), Spy("b")], 0)(torch.zeros(24, 3, 4, 4, dtype=torch.uint8), INDEX, 0)
    numbers = torch.cat([seen["a"], seen["b"]]).flatten()
    assert len(numbers.unique()) == len(numbers)


def test_lists_of_nodes_and_wrong_ones():
    made = build([{"_target_": "recombine.data.augment.Rotation", "degrees": 30}])
    assert made[0].degrees == 30
    for wrong, message in (
        ("flipp", "dataset.augment=flipp: did you mean 'flip'"),
        ([{"_target_": "os.system", "command": "true"}], "is not an augmentation"),
        ([{"_target_": "recombine.data.augment.Rotation", "angle": 3}], "unknown setting dataset.augment.0.angle"),
        ([{"_target_": "recombine.data.augment.Turn"}], "has no Turn"),
        ([{"_target_": "recombine.data.augment.RandomResizedCrop", "scale": [0.0, 1]}], "scale=.*above 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            build(wrong)
    with pytest.raises(ConfigError, match="has to be the first"):
        Augment(build([*PRESETS["flip"], *PRESETS["crop_resize"]]), 0)


def test_crops_mirror_half_of_the_samples_with_numbers_of_their_own():
    index, sides = np.arange(4000), np.full(4000, 100)
    augment = Augment([*build("crop_resize"), HorizontalFlip()], 0)
    parts = augment.crop.rectangles((0, 3), index, sides, sides)
    assert abs(parts[:, 4].mean() - 0.5) < 0.03
    assert not RandomResizedCrop().rectangles((0, 3), index, sides, sides)[:, 4].any()
    flips = draws(0, 3, 1, torch.from_numpy(index))(0).numpy() < 0.5
    assert abs(np.corrcoef(np.column_stack([parts[:, 4], flips, parts[:, 0]]).T) - np.eye(3)).max() < 0.05
