"""Filters that can be switched off: which they are, and that the smaller network without them computes the same."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx, nn
from torch.nn import functional as F

from recombine.core.errors import ConfigError
from recombine.models.channels import channel_groups, gated, without_channels
from recombine.models.cuts import cuts
from recombine.models.graph import Traced, segment, trace

WIDTHS = {  # channels of the groups in order, and how many groups in a row have so many
    "lenet5": [(6, 1), (16, 1), (120, 1), (84, 1)],
    "cnn": [(8, 1), (12, 1), (16, 1)],
    "resnet20": [(16, 3), (32, 3), (64, 3)],
    "resnet18_cifar": [(64, 2), (128, 2), (256, 2), (512, 2)],
    "resnet50": [(64, 1), (64, 6), (128, 8), (256, 12), (512, 6)],
    "mobilenetv2_cifar": [(48, 6), (96, 4), (144, 3), (240, 3), (80, 1), (1280, 1)],
    "shufflenetv2_cifar": [(24, 4), (48, 8), (96, 4), (1024, 1)],
    "vgg11_cifar": [(64, 1), (128, 1), (256, 2), (512, 4)],
}


class Gate(nn.Module):
    """Multiplies channels by their mask."""

    def __init__(self, mask):
        super().__init__()
        self.mask = mask

    def forward(self, x):
        return x * self.mask.to(x).view(1, -1, *[1] * (x.ndim - 2))


def with_gates(traced, groups, masks) -> fx.GraphModule:
    root = nn.Module()
    root.base, root.gates = traced.net, nn.ModuleList(map(Gate, masks))
    graph, _ = gated(traced, groups, "base.", "gates")
    graph.lint()
    return fx.GraphModule(root, graph)


def random_masks(groups):
    generator = torch.Generator().manual_seed(0)
    masks = [torch.rand(group.channels, generator=generator) < 0.5 for group in groups]
    for mask in masks:
        mask[0] = True
    return masks


def test_the_free_channels_of_each_family(example):
    name, traced, _ = example
    groups = channel_groups(traced)
    assert [group.channels for group in groups] == [width for width, times in WIDTHS[name] for _ in range(times)]
    for group in groups:
        assert [gate.meta["shape"][1] for gate in group.gates] == [group.channels]
        assert group.name == group.producers[0] and traced.head not in group.producers


def test_resnet18_has_the_first_convolution_of_each_block(network):
    groups = channel_groups(network("resnet18_cifar")[0])
    assert sum(group.channels for group in groups) == 1920
    names = [f"layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1)]
    assert [group.producers for group in groups] == [(f"{name}.conv1", f"{name}.bn1") for name in names]
    assert [group.consumers for group in groups] == [((f"{name}.conv2", 1),) for name in names]


def test_a_flattened_map_gives_a_feature_for_each_pixel(network):
    groups = channel_groups(network("lenet5")[0])
    assert [group.consumers for group in groups] == [(("conv2", 1),), (("fc1", 25),), (("fc2", 1),), (("fc3", 1),)]
    assert [group.gates[0].target for group in groups] == ["pool1", "pool2", "relu3", "relu4"]


def test_depthwise_convolutions_belong_to_what_they_follow(network):
    group = next(g for g in channel_groups(network("mobilenetv2_cifar")[0]) if g.name == "features.5.conv.0.0")
    assert group.producers == tuple(f"features.5.conv.{part}" for part in ("0.0", "0.1", "1.0", "1.1"))


def test_only_groups_made_above_a_cut(example):
    _, traced, _ = example
    groups = channel_groups(traced)
    assert channel_groups(traced, after=next(iter(traced.graph.nodes))) == groups
    sizes = []
    for cut in cuts(traced):
        upper = segment(traced.net, traced.graph, [cut.node], list(next(reversed(traced.graph.nodes)).all_input_nodes))
        calls = {node.target for node in upper.graph.nodes}
        above = channel_groups(traced, after=cut.node)
        assert above == tuple(group for group in groups if group.name in calls)
        sizes.append(len(above))
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] == 0


def test_masks_of_ones_change_no_bit(example):
    _, traced, images = example
    groups = channel_groups(traced)
    ones = [torch.ones(group.channels, dtype=torch.bool) for group in groups]
    expected = traced.net(images)
    assert torch.equal(with_gates(traced, groups, ones)(images), expected)
    assert torch.equal(without_channels(traced, groups, ones)(images), expected)


def test_the_smaller_network_equals_the_masked_one(example):
    _, traced, images = example
    groups = channel_groups(traced)
    masks = random_masks(groups)
    before = {key: value.clone() for key, value in traced.net.state_dict().items()}
    small = without_channels(traced, groups, masks)
    masked = with_gates(traced, groups, masks)(images)
    torch.testing.assert_close(small(images), masked, rtol=0, atol=1e-10)
    assert (masked - traced.net(images)).abs().max() > 1e-6
    assert all(torch.equal(before[key], value) for key, value in traced.net.state_dict().items())
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in traced.net.parameters())
    for name, module in small.named_modules():
        if isinstance(module, nn.Conv2d):
            shape = (module.out_channels, module.in_channels // module.groups, *module.kernel_size)
            assert module.weight.shape == shape, name
    again = trace(small, images.shape[-1])
    assert [group.channels for group in channel_groups(again)] == [int(mask.sum()) for mask in masks]


def test_the_graph_serves_the_smaller_network(network):
    traced, images = network("mobilenetv2_cifar")
    cut = cuts(traced)[3].node
    groups = channel_groups(traced, after=cut)
    small = without_channels(traced, groups, random_masks(groups))
    start, (end,) = next(iter(traced.graph.nodes)), next(reversed(traced.graph.nodes)).all_input_nodes
    (crossing,) = segment(traced.net, traced.graph, [start], [cut])(images)
    assert torch.equal(segment(small, traced.graph, [cut], [end])(crossing)[0], small(images))


STREAMS = {"resnet18_cifar": [6, 6, 6, 6], "mobilenetv2_cifar": [6, 4, 6, 8, 6, 6]}
"""How many layers and norms write to each residual stream."""


@pytest.mark.parametrize("name", STREAMS)
def test_all_that_write_to_a_residual_stream_lose_the_same_filters(name, network):
    traced, images = network(name)
    whole = channel_groups(traced)
    groups = channel_groups(traced, streams=True)
    streams = [group for group in groups if group not in whole]
    assert [group for group in groups if group in whole] == list(whole)
    assert [len(group.producers) for group in streams] == STREAMS[name]
    masks = random_masks(groups)
    small, masked = without_channels(traced, groups, masks), with_gates(traced, groups, masks)
    torch.testing.assert_close(small(images), masked(images), rtol=0, atol=1e-10)
    count = [sum(p.numel() for p in net.parameters()) for net in (small, traced.net)]
    assert count[0] < 0.5 * count[1]
    for cut in cuts(traced)[:-2]:
        above = channel_groups(traced, after=cut.node, streams=True)
        assert above and {group.name for group in above} <= {group.name for group in groups}


def test_a_stream_that_is_padded_between_stages_stays_whole(network):
    traced, _ = network("resnet20")
    assert channel_groups(traced, streams=True) == channel_groups(traced)


def test_a_masked_filter_contributes_nothing(example):
    _, traced, images = example
    groups = channel_groups(traced)
    masks = random_masks(groups)
    net = with_gates(traced, groups, masks)
    before = net(images)
    state = {key: value.clone() for key, value in traced.net.state_dict().items()}
    generator = torch.Generator().manual_seed(1)
    try:
        for group, mask in zip(groups, masks, strict=True):
            for name in group.producers:
                for value in traced.net.get_submodule(name).state_dict().values():
                    if value.ndim:
                        noise = torch.rand(value.shape, generator=generator, dtype=torch.float64) + 0.1
                        value[~mask] = noise[~mask]
        assert torch.equal(net(images), before)
    finally:
        traced.net.load_state_dict(state)


def test_the_gated_value_stands_for_the_gate(network):
    traced, _ = network("lenet5")
    groups = channel_groups(traced)
    graph, new = gated(traced, groups, "base.", "gates")
    assert [new[group.gates[0]].target for group in groups] == [f"gates.{i}" for i in range(4)]
    assert all(list(new[g.gates[0]].args[0].users) == [new[g.gates[0]]] for g in groups)
    assert "gates.0" not in {node.target for node in traced.graph.nodes}
    assert [node.target for node in graph.nodes if node.op == "call_module"][:4] == [
        "base.conv1",
        "base.relu1",
        "base.pool1",
        "gates.0",
    ]


def plain(*middle: nn.Module, features: int = 4) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), *middle, nn.Linear(features, 2))


MEAN = (nn.AdaptiveAvgPool2d(1), nn.Flatten())
FREE = {
    "no zero at zero": plain(nn.Sigmoid(), *MEAN),
    "depth-wise": plain(nn.Conv2d(4, 4, 3, groups=4), nn.BatchNorm2d(4), nn.Softplus(), *MEAN),
    "flattened, then dropped": plain(nn.Sigmoid(), nn.Flatten(), nn.Dropout(), features=256),
    "normalised flat": plain(*MEAN, nn.BatchNorm1d(4), nn.Sigmoid()),
}
BOUND = {
    "softmax over the channels": plain(nn.Softmax(1), *MEAN),
    "norm of all channels": plain(nn.GroupNorm(2, 4), *MEAN),
    "shuffle": plain(nn.ChannelShuffle(2), *MEAN),
    "grouped": plain(nn.Conv2d(4, 4, 1, groups=2), *MEAN),
    "depth multiplied": plain(nn.Conv2d(4, 8, 1, groups=4), *MEAN, features=8),
    "one weight for all": plain(nn.PReLU(), *MEAN),
    "activated after flattening": plain(nn.Flatten(), nn.Sigmoid(), features=256),
    "read along another axis": plain(nn.Flatten(2), nn.Linear(64, 4), nn.Flatten(), features=16),
}


@pytest.mark.parametrize("name", FREE)
def test_what_keeps_channels_apart(name, prepared):
    traced = trace(prepared(FREE[name]), 8)
    groups = channel_groups(traced)
    assert [group.name for group in groups] == ["0"]
    images, masks = torch.randn(2, 3, 8, 8, dtype=torch.float64), [torch.tensor([True, False, False, True])]
    small = without_channels(traced, groups, masks)
    torch.testing.assert_close(small(images), with_gates(traced, groups, masks)(images), rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", BOUND)
def test_what_ties_channels_together(name):
    assert channel_groups(trace(BOUND[name].eval(), 8)) == ()


class Branches(nn.Module):
    """A value that several modules read, put together in the end by `join`."""

    def __init__(self, join):
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.join, self.fc = join, nn.Linear(4, 2)

    def forward(self, x):
        return self.fc(self.join(self, F.relu(self.stem(x))).mean((2, 3)))


@pytest.mark.parametrize(
    ("join", "free"),
    [
        (lambda net, x: net.a(x) + net.b(x), ["stem"]),
        (lambda net, x: net.a(x) * x, []),
        (lambda net, x: torch.cat([net.a(x)[:, :2], net.b(x)[:, 2:]], 1), ["stem"]),
        (lambda net, x: net.a(net.a(x)), []),
        (lambda net, x: net.a(x) + net.b(F.avg_pool2d(x, 3, 1, 1)), []),
        (lambda net, x: net.b(F.gelu(net.a(x))), ["stem", "a", "b"]),
        (lambda net, x: net.b(x + net.b.weight.mean()), []),
    ],
    ids=["sum", "product", "concatenation", "called twice", "forked operations", "chain", "weight used elsewhere"],
)
def test_sums_products_and_repeated_modules_are_left_whole(join, free):
    assert [group.name for group in channel_groups(trace(Branches(join).eval(), 8))] == free


class Standardised(nn.Conv2d):
    """Its effective weight depends on all its input channels."""

    def forward(self, x):
        return F.conv2d(x, self.weight - self.weight.mean((1, 2, 3), keepdim=True), self.bias)


def test_layers_of_another_kind_are_left_whole():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), Standardised(4, 4, 1), nn.Conv2d(4, 4, 1), *MEAN, nn.Linear(4, 2))
    assert [group.name for group in channel_groups(trace(net.eval(), 8))] == ["2"]


def test_a_mask_that_keeps_nothing_is_told(network):
    traced, _ = network("lenet5")
    (group, *_) = channel_groups(traced)
    with pytest.raises(ConfigError, match="all 6 filters of conv1 are switched off; keep at least one"):
        without_channels(traced, [group], [torch.zeros(6, dtype=torch.bool)])


@cache
def mixed() -> Traced:
    """Activations without a zero at zero, a depth-wise convolution, and a flattened map."""
    net = nn.Sequential(
        *(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), nn.Sigmoid(), nn.Conv2d(3, 3, 1, groups=3), nn.Softplus()),
        *(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 3), nn.Sigmoid()),
        nn.Linear(3, 2),
    )
    return trace(net.double().eval(), 8)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_masks_of_any_groups(data):
    traced = mixed()
    groups = [group for group in channel_groups(traced) if data.draw(st.booleans())]
    masks = [
        torch.tensor(data.draw(st.lists(st.booleans(), min_size=g.channels, max_size=g.channels).filter(any)))
        for g in groups
    ]
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    small = without_channels(traced, groups, masks)
    torch.testing.assert_close(small(images), with_gates(traced, groups, masks)(images), rtol=0, atol=1e-10)
    assert [g.channels for g in groups] == [traced.net.get_submodule(g.name).weight.shape[0] for g in groups]
