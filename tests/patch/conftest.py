"""Networks the patch tests share: small, with weights that make every layer matter."""

from __future__ import annotations

import pytest
import torch

from recombine import models
from tests.networks import shaken


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
