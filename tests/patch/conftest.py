"""Networks the patch tests share: small, with weights that make every layer matter."""

from __future__ import annotations

import pytest
import torch

from src import models


def shaken(model):
    """Give BatchNorm layers statistics and scales that are not those of a fresh network."""
    generator = torch.Generator().manual_seed(0)
    for name, value in model.state_dict().items():
        if value.is_floating_point() and value.ndim == 1:
            spread = torch.rand(value.shape, generator=generator)
            value.copy_(0.5 + spread if "var" in name or "weight" in name else spread - 0.5)
    return model.eval()


@pytest.fixture(scope="session")
def network():
    """Builds a network of the zoo with random weights by name."""

    def make(name: str, classes: int = 10, **options):
        return shaken(models.build({"name": name, "weights": None, "classes": classes, **options}, classes=classes))

    return make


@pytest.fixture
def resnet8(network):
    """The smallest residual network: three blocks of one sub-block, 32 px."""
    return network("resnet8")


@pytest.fixture
def resnet20(network):
    """Three blocks of three sub-blocks, 32 px."""
    return network("resnet20")


@pytest.fixture
def images():
    """uint8 images of 32 px that differ."""
    return torch.randint(0, 256, (6, 3, 32, 32), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
