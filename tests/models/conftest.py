"""Networks the tests of cuts and channels share, with BatchNorms that matter."""

from __future__ import annotations

from functools import cache

import pytest
import torch
import torchvision
from torch import nn

from recombine.models import small
from recombine.models.cifar_resnet import CifarResNet
from recombine.models.graph import Traced, trace
from tests.networks import shaken

NETWORKS = {  # name: constructor, side of its images
    "lenet5": (lambda: small.lenet5(5), 32),
    "cnn": (lambda: small.cnn(5, (8, 12, 16)), 32),
    "resnet20": (lambda: CifarResNet(5, 20), 32),
    "resnet18_cifar": (lambda: small.resnet_cifar(5, 18), 16),
    "resnet50": (lambda: torchvision.models.resnet50(num_classes=5), 64),
    "mobilenetv2_cifar": (lambda: small.mobilenetv2_cifar(5, 0.25), 32),
    "shufflenetv2_cifar": (lambda: small.shufflenetv2_cifar(5, "x0_5"), 32),
    "vgg11_cifar": (lambda: small.vgg_cifar(5, 11), 32),
}


def in_double(net: nn.Module) -> nn.Module:
    """Weights that matter, in float64, without gradients."""
    return shaken(net).double().requires_grad_(False)


@cache
def build(name: str) -> tuple[Traced, torch.Tensor]:
    """The network of that name, traced, and two images for it."""
    make, size = NETWORKS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return trace(in_double(make()), size), torch.randn(2, 3, size, size, dtype=torch.float64)


@pytest.fixture(params=NETWORKS)
def example(request) -> tuple[str, Traced, torch.Tensor]:
    """Each of the networks in turn: name, trace and images, not to be changed."""
    return request.param, *build(request.param)


@pytest.fixture
def network():
    """The trace and two images of a network by name, not to be changed."""
    return build


@pytest.fixture
def prepared():
    """Gives a network weights that matter, in float64 and eval mode."""
    return in_double
