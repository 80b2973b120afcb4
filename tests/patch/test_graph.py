"""Blocks found by structure, and graphs cut in two."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from torch import fx, nn
from torchvision.models.convnext import CNBlockConfig

from recombine.core.errors import ConfigError
from recombine.models.graph import frontier, segment, trace
from recombine.models.model import find_head
from recombine.patch.delta import Delta
from recombine.patch.patched import HeadOnly, TaskNetwork

RESNET50 = [("layer1", 3, 64, 256), ("layer2", 4, 256, 512), ("layer3", 6, 512, 1024), ("layer4", 3, 1024, 2048)]
STAGES = {
    "torchvision:resnet18": [
        (f"layer{i}", 2, a, b) for i, a, b in ((1, 64, 64), (2, 64, 128), (3, 128, 256), (4, 256, 512))
    ],
    "torchvision:resnext50_32x4d": RESNET50,
    "torchvision:wide_resnet50_2": RESNET50,
    "timm:resnet50": RESNET50,
    "timm:convnext_atto": [
        (f"stages.{i}.blocks", n, c, c) for i, (n, c) in enumerate(((2, 40), (2, 80), (6, 160), (2, 320)))
    ],
    "torchvision:densenet121": [
        (f"features.denseblock{i}", n, a, b)
        for i, n, a, b in ((1, 6, 64, 256), (2, 12, 128, 512), (3, 24, 256, 1024), (4, 16, 512, 1024))
    ],
    "resnet20": [("layer1", 3, 16, 16), ("layer2", 3, 16, 32), ("layer3", 3, 32, 64)],
    "resnet20_optB_distiller": [("layer1", 3, 16, 16), ("layer2", 3, 16, 32), ("layer3", 3, 32, 64)],
    "timm:resnetv2_50": [(f"stages.{i}.blocks", *rest) for i, (_, *rest) in enumerate(RESNET50)],
}


@pytest.mark.parametrize("name", STAGES)
def test_blocks_are_the_stages_of_the_paper(network, name):
    model = network(name)
    found = trace(model.net, 32 if model.size == 32 else 64).blocks
    assert [(b.name, len(b.parts), b.channels, b.out_channels) for b in found] == STAGES[name]
    assert all(b.dense == ("densenet" in name) for b in found)


def test_convnext_blocks_start_after_the_downsampling_and_have_no_projection(network):
    found = trace(network("timm:convnext_atto").net, 64).blocks
    assert [b.input.meta["shape"][2] for b in found] == [16, 8, 4, 2]
    assert not any(part.projected for b in found for part in b.parts)


def test_only_the_first_sub_block_of_a_later_stage_has_a_projection(network):
    for block in trace(network("torchvision:resnet18").net, 64).blocks:
        assert [part.projected for part in block.parts] == [block.name != "layer1", False]


def test_blocks_of_a_flat_list_are_told_apart_by_where_they_begin_and_end():
    names = [block.name for block in trace(torchvision.models.mobilenet_v2(num_classes=3).eval(), 64).blocks]
    assert names == ["features.3.conv", "features.5-6", "features.8-10", "features.12-13", "features.15-16"]


@pytest.mark.parametrize("name", ["cnn", "vgg11_cifar", "torchvision:squeezenet1_1"])
def test_a_network_without_blocks_says_so(network, name):
    model = network(name)
    with pytest.raises(ConfigError, match=r"has no block.*ResNet"):
        trace(model.net, 64).last_blocks()


def swin(embed, window):
    return torchvision.models.SwinTransformer([4, 4], embed, [1, 1], [2, 2], [window] * 2, num_classes=3)


CHANNELS_LAST = {  # network: image size; in the second there are as many pixels a side, 8, as channels
    "torchvision": (lambda: swin(24, 7), 56),
    "square": (lambda: swin(8, 4), 32),
    "timm": (lambda: timm.create_model("swin_tiny_patch4_window7_224", embed_dim=12, num_heads=(1, 1, 1, 1)), 224),
}


@pytest.mark.parametrize("name", CHANNELS_LAST)
def test_channels_in_the_last_axis_are_no_feature_maps(name):
    """A convolution over [B, H, W, C] would take the height for channels."""
    make, size = CHANNELS_LAST[name]
    with pytest.raises(ConfigError, match="has no block"):
        trace(make().eval(), size).last_blocks()


def test_a_network_of_both_kinds_keeps_the_blocks_of_its_convolutions():
    """Its attention works on 64 windows of 49 pixels with 64 channels."""
    sizes = {"stem_channels": 16, "partition_size": 7, "block_channels": [64], "block_layers": [1], "head_dim": 32}
    net = torchvision.models.MaxVit((224, 224), **sizes, stochastic_depth_prob=0.0, num_classes=3)
    (block,) = trace(net.eval(), 224).blocks
    assert block.name.endswith("MBconv") and (block.channels, block.out_channels) == (16, 64)


def test_linear_layers_on_permuted_feature_maps_are_found_at_any_size():
    """ConvNeXt: as many pixels a side as channels."""
    net = torchvision.models.ConvNeXt([CNBlockConfig(8, 16, 2), CNBlockConfig(16, None, 2)], num_classes=3)
    assert [(b.channels, len(b.parts)) for b in trace(net.eval(), 32).blocks] == [(8, 2), (16, 2)]


class Inner(nn.Module):
    """Asks for a value of the data, after a call of its own and a change in place."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Sequential(nn.Conv2d(4, 4, 1))

    def forward(self, x):
        y = self.layer(x)
        y[:, 0] = 1
        return y if y.sum() > 0 else x


class Outer(nn.Module):
    """Data-dependent control flow below two levels of modules, between a convolution and a residual sum."""

    def __init__(self):
        super().__init__()
        self.stem, self.odd = nn.Conv2d(3, 4, 1), nn.Sequential(nn.Sequential(Inner()))
        self.conv, self.fc = nn.Conv2d(4, 4, 1), nn.Linear(4, 2)

    def forward(self, x):
        x = self.odd(self.stem(x))
        return self.fc((x + self.conv(x)).mean((2, 3)))


def test_what_cannot_be_traced_inside_a_network_is_called_as_it_is():
    net = Outer().eval()
    traced = trace(net, 8)
    assert [node.target for node in traced.graph.nodes if node.op == "call_module"] == ["stem", "odd.0.0", "conv", "fc"]
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(fx.GraphModule(net, traced.graph)(images), net(images))
    assert len(traced.blocks) == 1


@pytest.mark.parametrize("options", [{"num_classes": 0}, {"features_only": True, "out_indices": (3,)}])
@pytest.mark.parametrize("name", ["resnet10t", "convnext_atto", "efficientnet_lite0"])
def test_a_network_without_classifier_is_told(name, options):
    """Some layer of it has as many outputs as the network all the same."""
    traced = trace(timm.create_model(name, **options).eval(), 64)
    with pytest.raises(ConfigError, match=r"has no classifier: .* create it with num_classes="):
        HeadOnly(traced, 3)


@pytest.mark.parametrize("name", ["torchvision:squeezenet1_1", "timm:mobilenetv3_small_050", "resnet8_mlcommons"])
def test_the_classifier_is_the_last_layer(network, name):
    """A convolution before the pooling, a layer before a flattening, a plain layer."""
    net = network(name, classes=7).net
    assert trace(net, 64).head == find_head(net, 7)


def test_a_size_that_a_network_refuses_is_told():
    net = timm.create_model("vit_tiny_patch16_224", depth=1, num_classes=2)
    with pytest.raises(ConfigError, match=r"cannot be traced at 64 pixels: .*doesn't match model"):
        trace(net, 64)


def test_values_that_are_no_tensors_pass_by_but_cannot_be_kept():
    """DaViT hands the size along with each map."""
    net = timm.create_model("davit_tiny", depths=(1, 1), embed_dims=(8, 16), num_heads=(1, 1), num_classes=2).eval()
    patch = Delta(trace(net, 64), 0, weights="base", norm="none")
    patched, images = TaskNetwork(net, patch).eval(), torch.randn(2, 3, 64, 64)
    assert torch.equal(patched(images), net(images)) and patched.prefix_floats == float("inf")
    with pytest.raises(ConfigError, match=r"DaVit: .* is no tensor"):
        patched.prefix(images)


def test_more_blocks_than_there_are(resnet20):
    with pytest.raises(ConfigError, match=r"4 blocks were asked for, but CifarResNet has 3: layer1, layer2, layer3"):
        trace(resnet20.net, 32).last_blocks(4)


def test_tracing_leaves_modes_and_statistics_alone(resnet20):
    net = resnet20.net.train()
    net.layer1[0].bn1.eval()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    trace(net, 32)
    assert net.training and not net.layer1[0].bn1.training
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


def test_segments_compose_to_the_network():
    net = torchvision.models.resnet18(num_classes=7).eval()
    traced = trace(net, 64)
    images = torch.randn(2, 3, 64, 64)
    start = next(node for node in traced.graph.nodes if node.op == "placeholder")
    (end,) = next(node for node in traced.graph.nodes if node.op == "output").all_input_nodes
    cut = traced.blocks[2].input
    first, second = segment(net, traced.graph, [start], [cut]), segment(net, traced.graph, [cut], [end])
    with torch.no_grad():
        torch.testing.assert_close(second(*first(images))[0], net(images), rtol=0, atol=0)
        torch.testing.assert_close(
            first(images)[0], net.layer2(net.layer1(net.maxpool(net.relu(net.bn1(net.conv1(images))))))
        )
    assert second.get_submodule("layer4.1.conv2") is net.layer4[1].conv2


def test_a_segment_needs_all_its_inputs(resnet20):
    traced = trace(resnet20.net, 32)
    last = traced.blocks[2]
    with pytest.raises(ConfigError, match="cannot be computed from"):
        segment(traced.net, traced.graph, [last.parts[0].branch], [last.output])


def test_the_frontier_of_a_block_is_its_input(resnet20):
    traced = trace(resnet20.net, 32)
    block = traced.blocks[1]
    order = list(traced.graph.nodes)
    live = set(order[order.index(block.input) + 1 :])
    assert frontier(traced.graph, live) == [block.input]


def test_what_changes_its_input_in_place_is_no_identity():
    """Dropout in eval gives back its very input; a ReLU in place does too, but with other values."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(144, 2))
    found = {
        str(node.target): node.meta.get("identity") for node in trace(net, 8).graph.nodes if node.op == "call_module"
    }
    assert (found["1"], found["2"]) == (True, False)
