"""Tracing parents: the graph computes what the network does, without effects in place; what may be stitched."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from recombine.core.errors import ConfigError
from recombine.models import Model
from recombine.models.model import Preprocess
from recombine.stitch.layers import Align, compatible, make_stitch, rows
from recombine.stitch.loading import preprocessing_differences
from recombine.stitch.matching import match
from recombine.stitch.offspring import export
from recombine.stitch.parents import Parent
from recombine.stitch.search.space import references
from recombine.stitch.stitch_init import initialise
from recombine.stitch.stitches import matching_problem
from recombine.stitch.supernetwork import StitchPoint, Supernetwork
from recombine.stitch.training import relative_errors
from tests.stitch.test_training import Images


def wrapped(net: nn.Module, size: int = 32, classes: int = 5) -> Model:
    preprocess = Preprocess(size, [0.5] * 3, [0.5] * 3)
    return Model(net.eval(), preprocess, name="net", classes=classes, architecture="test")


@pytest.mark.parametrize(
    "make",
    [
        lambda: torchvision.models.resnet18(num_classes=5),
        lambda: torchvision.models.squeezenet1_1(num_classes=5),
        lambda: torchvision.models.densenet121(num_classes=5),
        lambda: timm.create_model("mobilenetv3_small_050", num_classes=5),
        lambda: timm.create_model("resnext26ts", num_classes=5),
    ],
)
def test_graph_computes_what_the_network_does(make):
    torch.manual_seed(0)
    net = make()
    parent = Parent(wrapped(net, 64))
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(torch.fx.GraphModule(parent.net, parent.graph)(images), net.eval()(images))
    assert not any(getattr(module, "inplace", False) for module in parent.net.modules())
    assert parent.net is not net and any(getattr(module, "inplace", False) for module in net.modules())


class InPlace(nn.Module):
    """Changes values in place in every way there is, and reads them afterwards under their old names."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.relu, self.last = nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Linear(4, 5)

    def forward(self, images):
        x = self.first(images)
        self.relu(x)  # what follows reads x, not what relu returns
        y = x * 2
        y.add_(x)
        z = F.leaky_relu(y, inplace=True)
        z += y
        return self.last((z - x).mean((2, 3)))


def test_effects_in_place_are_seen_by_later_readers():
    torch.manual_seed(0)
    parent = Parent(wrapped(InPlace()))
    images = torch.randn(2, 3, 32, 32)
    kept = images.clone()
    with torch.no_grad():
        seen = torch.fx.GraphModule(parent.net, parent.graph)(images)
        assert torch.equal(seen, InPlace.forward(parent.model.net, images))
    assert torch.equal(images, kept)
    targets = [node.target for node in parent.graph.nodes]
    assert not any(isinstance(target, str) and target.endswith("_") for target in targets)


class Views(nn.Module):
    """Changes a value through a view of it, which no graph of values shows."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)

    def forward(self, images):
        x = self.first(images)
        x.flatten(2).mul_(2)
        return self.last(x.mean((2, 3)))


def test_changes_behind_views_are_refused():
    with pytest.raises(ConfigError, match="cannot be stitched"):
        Parent(wrapped(Views()))


class Branching(Views):
    """Computes different things for different images."""

    def forward(self, images):
        x = self.first(images)
        return self.last((x if x.sum() > 0 else 2 * x).mean((2, 3)))


class Mismatched(Views):
    """Fits no size of images."""

    def forward(self, images):
        return self.last(self.first(images).flatten(1))


@pytest.mark.parametrize(("net", "operation"), [(Branching, "gt"), (Mismatched, "last")])
def test_what_cannot_be_traced_is_told_in_one_sentence_with_the_operation(net, operation):
    with pytest.raises(
        ConfigError, match=rf"^{net.__name__} cannot be traced at 32 pixels: [^\n]+ operation {operation}\)$"
    ):
        Parent(wrapped(net()))


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 3)), "gives maps of 30 x 30 px for images of 32; .* resize its logits"),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(2)), "gives no logits .* choose a network that labels images"),
    ],
)
def test_what_gives_no_logits_is_refused(net, message):
    with pytest.raises(ConfigError, match=message):
        Parent(wrapped(net))


def test_candidates_are_all_operations_but_the_last_or_the_ends_of_blocks(model):
    network = model("resnet8", 0)
    parent = Parent(network)
    calls = [node for node in parent.graph.nodes if node.op not in ("placeholder", "output", "get_attr")]
    assert parent.output not in parent.nodes and parent.input not in parent.nodes
    assert set(parent.nodes) == {node for node in calls if node is not parent.output and len(node.meta["shape"]) > 1}
    ends = Parent(network, "block").nodes
    assert len(ends) == 3 and [node.meta["shape"][1] for node in ends] == [16, 32, 64]


def test_edges_pass_over_what_is_no_candidate(model):
    parent = Parent(model("resnet8", 0), "block")
    assert parent.edges(parent.nodes) == [(0, 1), (1, 2)]


def tokens(seed: int, **options) -> Model:
    """A small vision transformer; its forward has arguments with defaults besides the images."""
    torch.manual_seed(seed)
    small = {"num_classes": 5, "img_size": 32, "depth": 2}
    return wrapped(timm.create_model("vit_tiny_patch16_224", **small, **options), 32)


def test_channels_last_and_tokens_have_layouts_of_their_own():
    torch.manual_seed(0)
    convnext = Parent(wrapped(timm.create_model("convnext_atto", num_classes=5), 32))
    assert {convnext.layout(node) for node in convnext.nodes} >= {"NCHW", "NHWC", "NC"}
    sizes = {"img_size": 56, "embed_dim": 12, "depths": (1, 1), "num_heads": (1, 2)}
    swin = Parent(wrapped(timm.create_model("swin_tiny_patch4_window7_224", num_classes=5, **sizes), 56), "block")
    assert [swin.layout(node) for node in swin.nodes] == ["NHWC", "BNC"] * 2, "attention by windows, MLPs by tokens"


@pytest.mark.parametrize("normalised", [False, True])
def test_attention_is_no_map(normalised):
    """[B, heads, N, d] has four axes, the last as wide as the norm of queries and keys; [B, C, N] is not [B, N, C]."""
    parent = Parent(tokens(0, embed_dim=24, num_heads=2, qk_norm=normalised))
    shapes = {
        layout: [n.meta["shape"] for n in parent.nodes if parent.layout(n) == layout] for layout in ("NCHW", "BNC")
    }
    assert shapes["NCHW"] == [(1, 24, 2, 2)] and {shape[:2] for shape in shapes["BNC"]} == {(1, 4), (1, 5)}
    ends = Parent(parent.model, "block").nodes
    assert [node.meta["shape"] for node in ends] == [(1, 5, 24)] * 4, "two residual sums a block"


def small_densenet(seed: int, growth: int) -> Model:
    torch.manual_seed(seed)
    return wrapped(torchvision.models.DenseNet(growth, (2, 3), num_init_features=8, num_classes=5), 32)


def timm_net(seed: int, name: str, size: int = 32, **options) -> Model:
    torch.manual_seed(seed)
    return wrapped(timm.create_model(name, num_classes=5, **options), size)


DEIT = {"img_size": 32, "depth": 2, "embed_dim": 24, "num_heads": 2}
"""With a token for distillation and two heads."""
NHWC = {"depths": (1, 1, 1, 1), "conv_mlp": False}
PAIRS = {
    "ViT op": (50, lambda: (tokens(0, embed_dim=24, num_heads=2), tokens(1, embed_dim=36, num_heads=3))),
    "ViT block": (4, lambda: (tokens(0, embed_dim=24, num_heads=2), tokens(1, embed_dim=36, num_heads=3))),
    "DeiT block": (4, lambda: (timm_net(0, "deit_tiny_distilled_patch16_224", **DEIT),) * 2),
    "MobileNet and MnasNet block": (
        6,
        lambda: (timm_net(0, "mobilenetv3_small_050"), timm_net(1, "mnasnet_050")),
    ),
    "DenseNet op": (49, lambda: (small_densenet(0, 4), small_densenet(1, 8))),
    "NHWC op": (
        82,
        lambda: tuple(timm_net(k, "convnext_atto", dims=(8, 16, 16, 8 + 8 * k), **NHWC) for k in range(2)),
    ),
}
"""Two parents of random weights, and how many pairs of their nodes are joined."""


@torch.no_grad()
@pytest.mark.parametrize("kind", PAIRS)
def test_parents_of_every_kind_are_joined(joined, kind):
    """Without stitches the supernetwork is its parents; masks that attention takes by default are no images."""
    pairs, make = PAIRS[kind]
    net = joined(*make(), kind.split()[-1])
    assert len(net.pairs) == pairs
    images = torch.randint(0, 256, (3, 3, 32, 32), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    for genotype, parent in zip(references(len(net.genotype)), net.parents, strict=False):
        net.set_genotype(genotype)
        assert torch.equal(net(images), parent.model(images))
    genotype = references(len(net.genotype))[2]
    genotype[1::4] = 1
    net.set_genotype(genotype)
    assert torch.equal(export(net, genotype)(images), net(images))


def test_compatibility_is_everything_but_channels():
    assert compatible("NCHW", (1, 3, 8, 8), "NCHW", (1, 5, 8, 8))
    assert not compatible("NCHW", (1, 3, 8, 8), "NCHW", (1, 3, 8, 4))
    assert not compatible("NCHW", (1, 8, 8, 3), "NHWC", (1, 8, 8, 3))
    assert compatible("NHWC", (1, 8, 8, 3), "NHWC", (1, 8, 8, 7))
    assert compatible("BNC", (1, 10, 4), "BNC", (1, 10, 6))
    assert not compatible("BNC", (1, 10, 4), "BNC", (1, 9, 4))
    assert compatible("NC", (1, 10), "NC", (1, 3))
    assert not compatible("NC", (1, 10), "BNC", (1, 1, 10))


@pytest.mark.parametrize(
    ("layout", "shape", "out"),
    [
        ("NCHW", (2, 3, 4, 5), (2, 7, 4, 5)),
        ("NC", (2, 3), (2, 7)),
        ("BNC", (2, 5, 3), (2, 5, 7)),
        ("NHWC", (2, 4, 5, 3), (2, 4, 5, 7)),
    ],
)
def test_a_stitch_is_one_linear_map_of_channels(layout, shape, out):
    torch.manual_seed(0)
    stitch, value = make_stitch(layout, shape, layout, out), torch.randn(shape)
    given = stitch(value)
    assert given.shape == out
    expected = rows(value, layout) @ stitch.weight.detach().flatten(1).T + stitch.bias
    torch.testing.assert_close(rows(given, layout), expected)


def test_sizes_may_differ_by_a_factor_of_two_where_values_are_resized():
    def fits(*values):
        return compatible(*values, resize=True)

    assert fits("NCHW", (1, 3, 8, 8), "NCHW", (1, 5, 4, 4)) and fits("NCHW", (1, 3, 8, 8), "NHWC", (1, 16, 16, 5))
    assert fits("NCHW", (1, 3, 8, 8), "BNC", (1, 65, 5)) and fits("BNC", (1, 51, 5), "BNC", (1, 197, 5))
    assert not fits("NCHW", (1, 3, 9, 9), "NCHW", (1, 5, 4, 4)) and not fits("NCHW", (1, 3, 1, 1), "NC", (1, 3))
    assert not fits("BNC", (1, 60, 5), "NCHW", (1, 3, 7, 7)), "11 tokens beside a square are none of its prefix"


@torch.no_grad()
def test_resizing_keeps_what_both_sizes_hold():
    maps = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    tokens = Align("NCHW", (1, 3, 4, 4), "BNC", (1, 17, 3))(maps)
    assert torch.equal(tokens[:, 1:], maps.flatten(2).transpose(1, 2))
    torch.testing.assert_close(tokens[:, 0], maps.mean((2, 3)))
    assert torch.equal(Align("BNC", (1, 17, 3), "NCHW", (1, 3, 4, 4))(tokens), maps)
    halved = Align("NCHW", (1, 3, 4, 4), "NHWC", (1, 2, 2, 3))(maps)
    torch.testing.assert_close(halved.movedim(3, 1), F.avg_pool2d(maps, 2))
    smaller = Align("BNC", (1, 17, 3), "BNC", (1, 6, 3))(tokens)
    assert torch.equal(smaller[:, 0], tokens[:, 0])
    torch.testing.assert_close(smaller[:, 1], halved.mean((1, 2)))
    torch.testing.assert_close(smaller[:, 2:], halved.flatten(1, 2))
    grown = Align("NHWC", (1, 2, 2, 3), "NCHW", (1, 3, 4, 4))(halved)
    torch.testing.assert_close(grown, F.interpolate(halved.movedim(3, 1), scale_factor=2, mode="bilinear"))


@torch.no_grad()
def test_a_transformer_and_a_convolutional_network_are_joined_by_resizing():
    torch.manual_seed(0)
    network = wrapped(torchvision.models.resnet18(num_classes=5), 32)
    parents = (Parent(tokens(0, embed_dim=24, num_heads=2), "block"), Parent(network, "block"))
    found = match(matching_problem(parents, resize=True)).pairs.tolist()
    net = Supernetwork(parents, [StitchPoint(parents[0].nodes[i], parents[1].nodes[j]) for i, j in found]).eval()
    assert len(net.pairs) == 4 and {net.layout(0), net.layout(1)} == {"BNC", "NCHW"}
    images = torch.randint(0, 256, (8, 3, 32, 32), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    initialise(net, "lstsq", Images(images), 8)
    errors = relative_errors(net, Images(images), "fp32")
    assert (errors <= 1.001).all() and errors.min() < 0.9, "no worse than the mean of each channel"
    genotype = references(len(net.genotype))[2]
    genotype[:4] = 1
    net.set_genotype(genotype)
    assert torch.equal(export(net, genotype)(images), net(images))
    assert net.cost(genotype) > 0


def test_parents_have_to_see_the_same_pixels(model):
    one, other = model("resnet8", 0), model("resnet8", 1, crop_pct=0.875)
    (problem,) = preprocessing_differences(one, other)
    assert "a.crop_pct=0.875 or b.crop_pct=1.0" in problem
    assert preprocessing_differences(one, model("cnn", 0, mean=[0.1] * 3)) == []
