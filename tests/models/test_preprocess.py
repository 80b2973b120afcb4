"""Preprocessing against timm's and torchvision's own transforms, on photographs."""

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torchvision import transforms
from torchvision.models import ConvNeXt_Tiny_Weights, EfficientNet_B1_Weights, ResNet50_Weights

from recombine.core.errors import ConfigError
from recombine.models.model import Preprocess

HALF = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


@pytest.fixture(scope="module")
def photographs() -> list[Image.Image]:
    """Two photographs, cut to their centre square (427 px)."""
    images = [Image.fromarray(image) for image in load_sample_images().images]
    return [image.crop(((w := image.width) // 2 - 213, 0, w // 2 + 214, 427)) for image in images]


def stack(images: list[Image.Image]) -> torch.Tensor:
    """uint8 [B, 3, H, W]."""
    return torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images])


def assert_within_one_level(ours: torch.Tensor, expected: torch.Tensor) -> None:
    """Pillow and torch both round the resized image to 8 bits, and now and then to the other neighbour."""
    levels = (ours - expected).abs() * torch.tensor(IMAGENET["std"]).view(3, 1, 1) * 255
    assert levels.max() < 1.01
    assert levels.mean() < 0.01


def test_equal_size_is_only_normalised(photographs):
    small = [image.resize((32, 32)) for image in photographs]
    expected = torch.stack(
        [transforms.Compose([transforms.ToTensor(), transforms.Normalize(**IMAGENET)])(image) for image in small]
    )
    torch.testing.assert_close(Preprocess(32, **IMAGENET)(stack(small)), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("size", "crop_pct", "interpolation"),
    [(224, 0.875, "bilinear"), (224, 0.9, "bicubic"), (160, 0.875, "bicubic"), (256, 1.0, "bilinear")],
)
def test_agrees_with_timm(photographs, size, crop_pct, interpolation):
    config = {"input_size": (3, size, size), "crop_pct": crop_pct, "interpolation": interpolation, **IMAGENET}
    transform = timm.data.create_transform(**config, is_training=False)
    expected = torch.stack([transform(image) for image in photographs])
    ours = Preprocess(size, crop_pct=crop_pct, interpolation=interpolation, **IMAGENET)(stack(photographs))
    assert_within_one_level(ours, expected)


@pytest.mark.parametrize("weights", [ResNet50_Weights.IMAGENET1K_V2, EfficientNet_B1_Weights.IMAGENET1K_V2])
def test_agrees_with_torchvision(photographs, weights):
    preset = weights.transforms()
    size, resized = preset.crop_size[0], preset.resize_size[0]
    preprocess = Preprocess(
        size, preset.mean, preset.std, crop_pct=size / resized, interpolation=preset.interpolation.value
    )
    expected = torch.stack([preset(image) for image in photographs])
    assert preprocess.canvas == resized
    assert_within_one_level(preprocess(stack(photographs)), expected)


def test_canvas_of_every_torchvision_preset():
    preset = ConvNeXt_Tiny_Weights.DEFAULT.transforms()
    assert Preprocess(224, crop_pct=224 / preset.resize_size[0], **HALF).canvas == preset.resize_size[0] == 236
    for side in range(225, 400):
        assert Preprocess(224, crop_pct=224 / side, **HALF).canvas == side
    assert [Preprocess(s, crop_pct=0.875, **HALF).canvas for s in (224, 192, 176, 160, 128)] == [
        256,
        219,
        201,
        182,
        146,
    ]


def test_at_canvas_it_is_a_pure_crop():
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    ours = Preprocess(56, crop_pct=0.875, **HALF)(images)
    torch.testing.assert_close(ours, images[:, :, 4:60, 4:60].float() / 127.5 - 1, rtol=0, atol=1e-6)


def test_smaller_images_are_enlarged():
    images = torch.full((1, 3, 28, 28), 200, dtype=torch.uint8)
    ours = Preprocess(32, **HALF)(images)
    assert ours.shape == (1, 3, 32, 32)
    torch.testing.assert_close(ours, torch.full_like(ours, 200 / 127.5 - 1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("side", [32, 40])
def test_memory_format_is_kept_and_the_graph_is_whole(side):
    images = torch.randint(0, 256, (4, 3, side, side), dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    preprocess = Preprocess(32, **IMAGENET)
    assert preprocess(images).is_contiguous(memory_format=torch.channels_last)
    compiled = torch.compile(preprocess, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images), preprocess(images), rtol=0, atol=0)


def test_buffers_are_no_weights():
    assert Preprocess(32, **IMAGENET).state_dict() == {}


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"size": 0}, "size"),
        ({"crop_pct": 1.5}, "crop_pct"),
        ({"interpolation": "lanczos"}, "bilinear, bicubic"),
        ({"std": [0.0, 1.0, 1.0]}, "std"),
        ({"mean": [0.5]}, "mean"),
    ],
)
def test_impossible_settings_are_named(change, word):
    with pytest.raises(ConfigError, match=word):
        Preprocess(**{"size": 32, **HALF, **change})
