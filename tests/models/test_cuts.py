"""Where networks are cut in two, and that the halves are the whole."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from recombine.core.errors import ConfigError
from recombine.models import small
from recombine.models.cuts import cuts
from recombine.models.graph import segment, trace

CUTS = {
    "lenet5": [("conv1", (6, 14, 14)), ("conv2", (16, 5, 5)), ("fc1", (120,)), ("features", (84,))],
    "cnn": [("conv1", (8, 16, 16)), ("conv2", (12, 8, 8)), ("features", (16,))],
    "resnet20": [
        ("stem", (16, 32, 32)),
        ("layer1", (16, 32, 32)),
        ("layer2", (32, 16, 16)),
        ("layer3", (64, 8, 8)),
        ("features", (64,)),
    ],
    "resnet18_cifar": [
        ("stem", (64, 16, 16)),
        ("layer1", (64, 16, 16)),
        ("layer2", (128, 8, 8)),
        ("layer3", (256, 4, 4)),
        ("layer4", (512, 2, 2)),
        ("features", (512,)),
    ],
    "resnet50": [
        ("stem", (64, 16, 16)),
        ("layer1", (256, 16, 16)),
        ("layer2", (512, 8, 8)),
        ("layer3", (1024, 4, 4)),
        ("layer4", (2048, 2, 2)),
        ("features", (2048,)),
    ],
    "mobilenetv2_cifar": [
        ("stem", (8, 32, 32)),
        ("features.3.conv", (8, 32, 32)),
        ("features.5-6", (8, 16, 16)),
        ("features.8-10", (16, 8, 8)),
        ("features.12-13", (24, 8, 8)),
        ("features.15-16", (40, 4, 4)),
        ("features.17.conv.2", (80, 4, 4)),
        ("features", (1280,)),
    ],
    "shufflenetv2_cifar": [
        ("conv1.0", (24, 32, 32)),
        ("stage2.3.branch2.5", (48, 16, 16)),
        ("stage3.7.branch2.5", (96, 8, 8)),
        ("stage4.3.branch2.5", (192, 4, 4)),
        ("features", (1024,)),
    ],
    "vgg11_cifar": [
        ("features.0", (64, 16, 16)),
        ("features.4", (128, 8, 8)),
        ("features.8", (256, 8, 8)),
        ("features.11", (256, 4, 4)),
        ("features.15", (512, 4, 4)),
        ("features.22", (512, 2, 2)),
        ("features", (512,)),
    ],
}


def test_the_cuts_are_the_stages(example):
    name, traced, _ = example
    found = cuts(traced)
    assert [(cut.name, cut.shape) for cut in found] == CUTS[name]
    side = next(iter(traced.graph.nodes)).meta["shape"][-1]
    assert [cut.factor for cut in found] == [side / c.shape[1] if len(c.shape) == 3 else float("inf") for c in found]


def test_the_two_parts_are_the_network(example):
    _, traced, images = example
    start = next(iter(traced.graph.nodes))
    (end,) = next(node for node in traced.graph.nodes if node.op == "output").all_input_nodes
    expected = traced.net(images)
    for cut in cuts(traced):
        lower = segment(traced.net, traced.graph, [start], [cut.node])
        upper = segment(traced.net, traced.graph, [cut.node], [end])
        (crossing,) = lower(images)
        assert crossing.shape[1:] == cut.shape
        assert torch.equal(upper(crossing)[0], expected)


def test_the_last_cut_enters_the_classifier(example):
    _, traced, _ = example
    assert cuts(traced)[-1].node is traced.node(traced.head).args[0]


def test_the_full_mobilenet_has_one_cut_a_width():
    found = cuts(trace(small.mobilenetv2_cifar(5).eval(), 32))
    assert [cut.shape[0] for cut in found] == [16, 24, 32, 64, 96, 160, 320, 1280]
    assert [cut.factor for cut in found] == [1, 1, 2, 4, 4, 8, 8, float("inf")]


def test_a_convolutional_classifier_is_entered_by_a_map():
    *inner, last = cuts(trace(torchvision.models.squeezenet1_1(num_classes=5).eval(), 64))
    assert [cut.shape for cut in inner] == [(16, 15, 15), (32, 7, 7), (48, 3, 3), (64, 3, 3)]
    assert (last.name, last.shape, last.factor) == ("features", (512, 3, 3), 64 / 3)


def test_a_flattened_map_that_the_classifier_reads_is_flat():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Dropout(), nn.Flatten(), nn.Dropout(), nn.Linear(144, 2))
    (only,) = cuts(trace(net, 8))
    assert (only.name, only.node.target, only.shape, only.factor) == ("features", "4", (144,), float("inf"))


class Tokens(nn.Module):
    """A classifier on each pixel's channels, before the mean."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 1), nn.Linear(4, 2)

    def forward(self, x):
        return self.fc(self.conv(x).flatten(2).transpose(1, 2)).mean(1)


@pytest.mark.parametrize("net", [nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), Tokens()])
def test_a_network_without_features_cannot_be_cut(net):
    with pytest.raises(ConfigError, match=r"cannot be cut in two: what enters its classifier is no .* convolutional"):
        cuts(trace(net, 8))
