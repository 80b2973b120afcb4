"""Patches on networks of every shape: headless, feature maps, backbones of detectors, wrapped, other channels."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from torch import nn
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from recombine import patch
from recombine.core.errors import ConfigError
from recombine.models.graph import trace, traced
from recombine.patch.delta import Delta
from recombine.patch.lora import LoRA
from recombine.patch.patched import HeadOnly, TaskNetwork

NETS = {
    "headless": lambda: timm.create_model("resnet10t", num_classes=0),
    "features": lambda: timm.create_model("resnet10t", features_only=True),
    "one channel": lambda: timm.create_model("resnet10t", in_chans=1, num_classes=3),
    "pyramid": lambda: resnet_fpn_backbone(backbone_name="resnet18", weights=None),
    "segmentation": lambda: torchvision.models.segmentation.lraspp_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=3
    ),
}


def flat(output):
    """The tensors of what a network gives."""
    return [*output.values()] if isinstance(output, dict) else [*output] if isinstance(output, list) else [output]


@pytest.mark.parametrize("name", NETS)
def test_a_neutral_patch_gives_what_the_network_gives(name):
    torch.manual_seed(0)
    net = NETS[name]().eval()
    graph = trace(net, 64)
    neutral = TaskNetwork(net, Delta(graph, 0, weights="base", norm="none")).eval()
    images = torch.randn(2, 1 if name == "one channel" else 3, 64, 64)
    expected = net(images)
    found = neutral(images)
    assert type(found) is type(expected) or isinstance(found, dict)
    if isinstance(expected, dict):
        assert [*found] == [*expected]
    assert all(torch.equal(a, b) for a, b in zip(flat(found), flat(expected), strict=True))
    lora = TaskNetwork(net, LoRA(graph, 0, rank=1))
    sum(value.square().mean() for value in flat(lora(images))).backward()
    assert lora.patch.pairs[0][1].weight.grad.abs().sum() > 0 and all(p.grad is None for p in net.parameters())


def test_a_kept_prefix_holds_the_maps_that_lie_before_the_patch():
    net = timm.create_model("resnet10t", features_only=True).eval()
    patched = TaskNetwork(net, Delta(trace(net, 64), 0, modules=["layer3.0"])).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        pairs = zip(patched(images), patched(patched.prefix(images)), net(images), strict=True)
        same = [(torch.equal(a, b), torch.equal(a, c)) for a, b, c in pairs]
    assert same == [(True, True)] * 3 + [(True, False)] * 2  # the last two stages lie behind the patch


def test_a_detector_runs_on_a_patched_backbone():
    torch.manual_seed(0)
    backbone = resnet_fpn_backbone(backbone_name="resnet18", weights=None)
    few = {f"rpn_{which}_nms_top_n_{mode}": 20 for which in ("pre", "post") for mode in ("train", "test")}
    detector = torchvision.models.detection.FasterRCNN(backbone, 3, min_size=128, max_size=128, **few).eval()
    images = [torch.rand(3, 128, 96), torch.rand(3, 96, 128)]
    with torch.no_grad():
        expected = detector(images)
        graph = trace(backbone, 128)
        detector.backbone = TaskNetwork(backbone, Delta(graph, 0, weights="base", norm="none")).eval()
        torch.testing.assert_close(detector(images), expected, rtol=0, atol=0)
    detector.backbone = TaskNetwork(backbone, Delta(graph, 0)).train()
    detector.train()
    targets = [{"boxes": torch.tensor([[4.0, 4, 40, 40]]), "labels": torch.tensor([1])}] * 2
    sum(detector(images, targets).values()).backward()
    assert detector.backbone.patch.blocks[0].weights.fc.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in backbone.parameters())


@pytest.mark.parametrize("wrap", [lambda net: torch.compile(net, backend="eager"), nn.DataParallel])
def test_wrapped_networks_are_unwrapped(wrap, tmp_path):
    torch.manual_seed(0)
    net = timm.create_model("resnet10t", num_classes=3).eval()
    patched = TaskNetwork(net, Delta(traced(net, 64), 2)).eval()
    patch.save(patched, tmp_path / "a.safetensors", name="a", class_names=["x", "y"], size=64)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = patched(images)
        system = patch.attach(wrap(net), tmp_path / "a.safetensors")
        assert torch.equal(system(images, "a"), expected)
        assert TaskNetwork(wrap(net), HeadOnly(traced(wrap(net), 64), 2)).base is net


def test_the_second_patch_costs_no_tracing(tmp_path, monkeypatch):
    net = timm.create_model("resnet10t", num_classes=3).eval()
    patched = TaskNetwork(net, Delta(traced(net, 64), 2))
    patch.save(patched, tmp_path / "a.safetensors", name="a", class_names=["x", "y"], size=64)
    system = patch.attach(net, tmp_path / "a.safetensors")

    def refuse(*_):
        raise AssertionError("once is enough")

    with monkeypatch.context() as patched_modules:
        patched_modules.setattr("recombine.patch.serialization.traced", refuse)
        patched_modules.setattr("recombine.patch.serialization.digest", refuse)
        system.attach(tmp_path / "a.safetensors", "b")
    with torch.no_grad():
        net.conv1[0].weight += 1
    with pytest.raises(ConfigError, match="was made for a ResNet with weights"):
        system.attach(tmp_path / "a.safetensors", "c")


def test_where_there_is_nothing_to_mix_the_patch_says_so():
    graph = trace(timm.create_model("mobilevit_xxs", num_classes=3), 64)
    patched = Delta(graph, 3, modules=2)
    assert "stages.0.0 (1 sub-blocks, 1 skips), stages.1 (2 sub-blocks, 3 skips)" in patched.summary()
    first, second = patched.doubts()
    assert first.startswith("1 of 2 patched blocks (stages.0.0) have one sub-block")
    assert second.endswith("% of the weights come after stages.1, the last patched block")
    assert Delta(trace(timm.create_model("resnet18"), 64), 3).doubts() == []


def test_blocks_by_name(resnet20):
    graph = traced(resnet20)
    named = Delta(graph, 3, modules=["layer3", "layer1"])
    assert named.block_names == ["layer1", "layer3"] and named.options["modules"] == ["layer1", "layer3"]
    with pytest.raises(ConfigError, match="no block layer4; its blocks are layer1, layer2, layer3"):
        Delta(graph, 3, modules=["layer4"])


def test_a_patch_that_adds_nothing_is_refused(resnet20):
    with pytest.raises(ConfigError, match="HeadOnly adds nothing to a network that keeps its own head"):
        TaskNetwork(resnet20, HeadOnly(traced(resnet20), 0))
