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
from recombine.stitch.layers import compatible, make_stitch, rows
from recombine.stitch.parents import Parent, preprocessing_differences


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


def test_what_is_no_classifier_is_refused():
    with pytest.raises(ConfigError, match="choose a classifier"):
        Parent(wrapped(nn.Sequential(nn.Conv2d(3, 4, 3))))


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


def test_channels_last_and_tokens_have_layouts_of_their_own():
    torch.manual_seed(0)
    convnext = Parent(wrapped(timm.create_model("convnext_atto", num_classes=5), 32))
    assert {convnext.layout(node) for node in convnext.nodes} >= {"NCHW", "NHWC", "NC"}
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=5, img_size=32, depth=1, embed_dim=24, num_heads=2)
    transformer = Parent(wrapped(vit, 32))
    assert "BNC" in {transformer.layout(node) for node in transformer.nodes}


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
    stitch, value = make_stitch(layout, 3, 7), torch.randn(shape)
    given = stitch(value)
    assert given.shape == out
    wanted = rows(value, layout) @ stitch.weight.detach().flatten(1).T + stitch.bias
    torch.testing.assert_close(rows(given, layout), wanted)


def test_parents_have_to_see_the_same_pixels(model):
    one, other = model("resnet8", 0), model("resnet8", 1, crop_pct=0.875)
    (problem,) = preprocessing_differences(one, other)
    assert "a.crop_pct=0.875 or b.crop_pct=1.0" in problem
    assert preprocessing_differences(one, model("cnn", 0, mean=[0.1] * 3)) == []
