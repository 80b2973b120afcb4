"""The built-in networks against their papers' figures and other libraries' layers."""

import pytest
import torch
import torchvision
from timm.layers import Conv2dSame
from torch import nn
from torch.nn import functional as F

from recombine.core.builds import load_target
from recombine.core.errors import ConfigError
from recombine.flips.heads import find_heads
from recombine.models import Model, build, small
from recombine.models.architectures import BUILT_IN
from recombine.models.cifar_resnet import CifarResNet, PadShortcut
from recombine.models.model import Preprocess
from recombine.models.registry import config_names
from recombine.models.resolve import from_config
from recombine.models.tiny import MicroNetBlock, MLPerfResNet8


def parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)])
def test_cifar_resnet_has_the_papers_size(depth, millions):
    """He et al. 2016, table 6."""
    digits = 1 if depth == 110 else 2
    net = CifarResNet(10, depth)
    assert round(parameters(net) / 1e6, digits) == millions
    assert sum(isinstance(m, (nn.Conv2d, nn.Linear)) for m in net.modules()) == depth


def test_cifar_resnet_refuses_other_depths():
    with pytest.raises(ConfigError, match="depth=18 is not 6n"):
        build({"name": "resnet20", "weights": None, "depth": 18}, classes=10)


def test_option_a_shortcut_copies_every_second_pixel():
    x = torch.randn(2, 16, 8, 8)
    y = PadShortcut(16)(x)
    assert y.shape == (2, 32, 4, 4)
    assert torch.equal(y[:, 8:24], x[:, :, ::2, ::2])
    assert y[:, :8].abs().sum() == y[:, 24:].abs().sum() == 0


def test_width_scales_the_channels():
    net = CifarResNet(7, 8, width=4)
    assert (net.conv1.out_channels, net.linear.in_features, net.linear.out_features) == (4, 16, 7)


def test_resnet_cifar_is_torchvisions_but_for_the_stem():
    ours, theirs = small.resnet_cifar(10), torchvision.models.resnet18(num_classes=10)
    shapes = {k: v.shape for k, v in ours.state_dict().items()}
    assert {k for k, v in theirs.state_dict().items() if shapes[k] != v.shape} == {"conv1.weight"}
    x = torch.randn(1, 3, 32, 32)
    assert ours.layer1(ours.maxpool(ours.relu(ours.bn1(ours.conv1(x))))).shape == (1, 64, 32, 32)


@pytest.mark.parametrize(("depth", "width"), [(18, 512), (34, 512), (50, 2048)])
def test_resnet_cifar_has_torchvisions_size_but_for_stem_and_head(depth, width):
    stated = torchvision.models.get_model_weights(f"resnet{depth}").DEFAULT.meta["num_params"]
    expected = stated - (7 * 7 - 3 * 3) * 3 * 64 - (width + 1) * (1000 - 10)
    assert parameters(small.resnet_cifar(10, depth)) == expected


def test_vgg_features_equal_torchvisions():
    ours, theirs = small.vgg_cifar(10, 11).eval(), torchvision.models.vgg11_bn(init_weights=False).eval()
    theirs.features.load_state_dict(ours.features.state_dict())
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(ours(x), ours.classifier(theirs.features(x).flatten(1)))


@pytest.mark.parametrize("name", ["mobilenetv2_cifar", "shufflenetv2_cifar"])
def test_small_image_nets_keep_a_map_of_four_pixels(name):
    net = load_target("", BUILT_IN[name].constructs)(10).eval()
    sizes = []
    convolutions = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    convolutions[-1].register_forward_hook(lambda _, __, output: sizes.append(output.shape[-1]))
    net(torch.randn(1, 3, 32, 32))
    assert sizes == [4]


def test_lenet_has_the_known_size():
    assert parameters(small.lenet5(10)) == 62_006  # 61,706 for one input channel, and 300 for two more


def test_cnn_equals_its_formula():
    net = small.cnn(5, widths=(8, 16)).eval()
    x = torch.randn(3, 3, 32, 32)
    y = F.max_pool2d(F.relu(net.bn1(F.conv2d(x, net.conv1.weight, padding=1))), 2)
    y = F.relu(net.bn2(F.conv2d(y, net.conv2.weight, padding=1))).mean((2, 3))
    torch.testing.assert_close(net(x), y @ net.fc.weight.T + net.fc.bias)


def test_mlperf_resnet8_pads_as_timm_same():
    net = MLPerfResNet8(10).eval()
    same = Conv2dSame(16, 32, 3, stride=2)
    same.load_state_dict(net.conv3.state_dict())
    x = torch.randn(2, 16, 32, 32)
    torch.testing.assert_close(net.conv3(F.pad(x, (0, 1, 0, 1))), same(x))
    assert parameters(net) == 78_186


def test_micronet_blocks_of_stride_two_have_no_shortcut():
    block = MicroNetBlock(16, 16, 2, 3.0).eval()
    with torch.no_grad():
        block.bn3.weight.zero_()
        assert block(torch.randn(1, 16, 8, 8)).abs().max() == 0


@pytest.mark.parametrize("name", [n for n in config_names() if from_config(n).architecture in BUILT_IN])
def test_every_built_in_config_builds_and_learns(name):
    """Logits of the asked number of classes, and a gradient for every parameter that takes part."""
    spec = from_config(name)
    if spec.size > 64 or spec.options.get("depth", 0) > 34:
        pytest.skip("large: the same architecture is tested at another size")
    model = build({"name": name, "weights": None}, classes=7)
    model.train()
    logits = model(torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8))
    assert logits.shape == (2, 7)
    logits.square().sum().backward()
    without = [n for n, p in model.named_parameters() if p.grad is None]
    assert all(".fc1." in n or ".fc2." in n for n in without)  # unused in MicroNet's blocks of stride 2
    assert model.eval().features(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).ndim == 2


class PositionWise(nn.Module):
    """A classifier of every position, its scores averaged: a convolution of maps, or a linear layer."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.conv = kind, nn.Conv2d(3, 6, 3, 2, 1)
        self.head = nn.Conv2d(6, 4, 1) if kind == "maps" else nn.Linear(6, 4)

    def before(self, x):
        maps = torch.relu(self.conv(x))
        if self.kind == "maps":
            return maps
        return maps.movedim(1, 3) if self.kind == "channels last" else maps.flatten(2).mT

    def forward(self, x):
        scores = self.head(self.before(x))
        return scores.mean((2, 3)) if self.kind == "maps" else scores.flatten(1, -2).mean(1)


@pytest.mark.parametrize("kind", ["maps", "channels last", "tokens"])
def test_features_are_means_over_positions(kind):
    torch.manual_seed(0)
    net = PositionWise(kind)
    model = Model(net, Preprocess(12, [0.5] * 3, [0.5] * 3), name="x", classes=4, architecture="x")
    images = torch.randint(0, 256, (5, 3, 12, 12), dtype=torch.uint8)
    with torch.no_grad():
        maps = torch.relu(net.conv((images.float() / 255 - 0.5) / 0.5))  # as many channels as pixels a side
        torch.testing.assert_close(model.features(images), maps.mean((2, 3)))
        assert find_heads(model, images) == [net.head]
