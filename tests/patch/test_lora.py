"""LoRA and SSF against the weights they stand for, and normalisation layers of networks without BatchNorm."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from torch import nn

from recombine.core.errors import ConfigError
from recombine.models.graph import trace
from recombine.patch.adapters import NormAdaptation
from recombine.patch.lora import LoRA, ScaleShift
from recombine.patch.patched import TaskNetwork
from tests.networks import shaken


def randomised(patch):
    with torch.no_grad():
        for parameter in patch.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return patch


@pytest.mark.parametrize("make", [lambda g: LoRA(g, 0, rank=2), lambda g: ScaleShift(g, 0)], ids=["lora", "ssf"])
@pytest.mark.parametrize(
    "name", ["resnet10t", "convnext_atto", "mobilenetv3_small_050", "tf_mobilenetv3_small_minimal_100"]
)
def test_they_start_as_the_base_and_every_parameter_learns(name, make):
    net = shaken(timm.create_model(name, num_classes=3))
    patched, images = TaskNetwork(net, make(trace(net, 64))), torch.randn(4, 3, 64, 64)
    patched.train()
    assert torch.equal(patched(images), net(images))
    randomised(patched.patch)
    patched(images).square().sum().backward()
    assert all(value.grad is not None and value.grad.abs().sum() > 0 for value in patched.patch.parameters())


def test_lora_is_a_convolution_with_another_kernel():
    """W + alpha / rank * B A, with strides and padding, and for the linear layer behind."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 4, 1), nn.Flatten(), nn.Linear(64, 5))
    patch = randomised(LoRA(trace(net, 8), 0, rank=2, alpha=6))
    images, merged = torch.randn(2, 3, 8, 8), copy.deepcopy(net)
    assert patch.parameters_without_head() == 2 * (27 + 6) + 2 * (6 + 4) + 2 * (64 + 5)
    with torch.no_grad():
        for layer, (down, up) in zip((merged[0], merged[2], merged[4]), patch.pairs, strict=True):
            layer.weight += 3 * torch.einsum("or,r...->o...", up.weight.flatten(1), down.weight)
        torch.testing.assert_close(TaskNetwork(net, patch).eval()(images), merged(images))


def test_ssf_is_a_layer_with_scaled_weights():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3, groups=3), nn.Flatten(), nn.Linear(96, 5), nn.ReLU(), nn.Linear(5, 3))
    patch = randomised(ScaleShift(trace(net, 6), 3))
    images, merged = torch.randn(2, 3, 6, 6), copy.deepcopy(net)
    merged[4] = patch.head
    with torch.no_grad():
        for layer, scale in zip((merged[0], merged[2]), patch.scales, strict=True):
            gamma, beta = scale.gamma.flatten(), scale.beta.flatten()
            layer.weight *= gamma.view(-1, *[1] * (layer.weight.ndim - 1))
            layer.bias.mul_(gamma).add_(beta)
        torch.testing.assert_close(TaskNetwork(net, patch).eval()(images), merged(images))


def test_layer_norms_of_a_network_without_batch_norm():
    net = timm.create_model("convnext_atto", num_classes=3).eval()
    patch = NormAdaptation(trace(net, 64), 3)
    assert patch.parameters_without_head() == sum(
        p.numel() for m in net.modules() if isinstance(m, nn.LayerNorm) for p in m.parameters()
    )
    patch.head = net.head.fc
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(TaskNetwork(net, patch).eval()(images), net(images))
    with pytest.raises(ConfigError, match="no BatchNorm, whose statistics dua adapts; method=ssf"):
        NormAdaptation(trace(net, 64), 3, mode="dua")
    with pytest.raises(ConfigError, match="no normalisation layer"):
        NormAdaptation(trace(nn.Sequential(nn.Conv2d(3, 4, 1)), 8), 0)
