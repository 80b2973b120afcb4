"""The public checkpoints on real images, against pipelines that share nothing with ours but the network."""

import io

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import timm
import torch
from PIL import Image
from torchvision import transforms

from recombine.models import build
from recombine.models.registry import config_names
from recombine.models.resolve import from_config

CIFAR10 = ["resnet20", "resnet32", "resnet44", "resnet56", "resnet20_optB_distiller", "resnet8_mlcommons"]
CIFAR100 = ["micronet_v1_pruned60", "micronet_v2_pruned15"]
IMAGENET = [name for name in config_names() if from_config(name).classes == 1000]


def images(folder, count) -> tuple[list[Image.Image], torch.Tensor]:
    """The first test images of a parquet folder, and their labels."""
    file = next(folder.glob("test-*.parquet"), None)
    if file is None:
        pytest.skip(f"no parquet files in {folder}")
    table = pq.read_table(file).slice(0, count)
    pictures = [Image.open(io.BytesIO(cell["bytes"])).convert("RGB") for cell in table["image"].to_pylist()]
    return pictures, torch.tensor(table["label"].to_pylist())


def stack(pictures) -> torch.Tensor:
    return torch.stack([torch.from_numpy(np.array(picture)).permute(2, 0, 1) for picture in pictures])


def accuracy(logits, labels) -> float:
    return 100 * (logits.argmax(1) == labels).float().mean().item()


@pytest.mark.parametrize("name", CIFAR10)
def test_cifar10_checkpoints(data_root, name):
    pictures, labels = images(data_root / "cifar10", 250)
    model = build(name, weights_root=data_root / "weights" / "cifar10")
    normalise = [transforms.ToTensor(), transforms.Normalize(model.mean, model.std)]
    with torch.no_grad():
        ours = model(stack(pictures))
        theirs = model.net(torch.stack([transforms.Compose(normalise)(picture) for picture in pictures]))
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
    assert accuracy(ours, labels) == accuracy(theirs, labels)
    assert accuracy(ours, labels) > (84 if name == "resnet8_mlcommons" else 89)
    assert model.tag.startswith(name)


@pytest.mark.parametrize("name", CIFAR100)
def test_cifar100_checkpoints(data_root, name):
    pictures, labels = images(data_root / "cifar100_small", 300)
    model = build(name, weights_root=data_root / "weights" / "cifar100")
    with torch.no_grad():
        assert accuracy(model(stack(pictures)), labels) > 75


def square(picture: Image.Image, side: int) -> Image.Image:
    """The centre square of the whole short side, resized by area."""
    short = min(picture.size)
    left, top = (picture.width - short) // 2, (picture.height - short) // 2
    pixels = np.array(picture.crop((left, top, left + short, top + short)))
    return Image.fromarray(cv2.resize(pixels, (side, side), interpolation=cv2.INTER_AREA))


@pytest.mark.parametrize("name", IMAGENET)
def test_imagenet_checkpoints(data_root, name):
    """Photographs stored at the canvas: a pure crop, so timm's transform must give the same logits."""
    pictures, labels = images(data_root / "imagenet_val500", 500)
    pictures, labels = pictures[::50], labels[::50]
    model = build(name, weights_root=data_root / "weights" / "imagenet")
    pictures = [square(picture, model.canvas) for picture in pictures]
    config = {"input_size": (3, model.size, model.size), "crop_pct": model.crop_pct, "interpolation": "bilinear"}
    transform = timm.data.create_transform(**config, mean=model.mean, std=model.std)
    with torch.no_grad():
        ours = model(stack(pictures))
        theirs = model.net(torch.stack([transform(picture) for picture in pictures]))
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
    assert accuracy(ours, labels) >= 25
