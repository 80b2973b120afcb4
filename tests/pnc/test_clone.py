"""A clone by itself: masks, branches, the cloned network, its file."""

from __future__ import annotations

import copy
import json
from functools import lru_cache

import pytest
import torch
from safetensors.torch import save_file

from recombine import models as zoo
from recombine import pnc
from recombine.core.errors import ConfigError
from recombine.models.freeze import digest
from recombine.models.graph import traced
from recombine.pnc.clone import serialization
from recombine.pnc.clone.branch import Branch, features_node, find_linear_head
from recombine.pnc.clone.candidates import Candidates
from recombine.pnc.clone.cloned_network import ClonedNetwork
from recombine.pnc.clone.masks import ChannelMask, anneal_keep_ratio, set_keep_ratio
from recombine.pnc.clone.part import Clone
from recombine.pnc.clone.positions import Position, clones_layers, find_positions, find_probe
from tests.networks import shaken

SETTINGS = {"size": 32, "mean": [0.4] * 3, "std": [0.3] * 3}
NAMES = ["cat", "dog", "frog"]
SQUEEZE, VIT = "torchvision:squeezenet1_1", "timm:vit_tiny_patch16_224"
graph = lru_cache(traced)  # cuts are places of one graph of a network


def network(name, classes, seed=0, **options):
    """A network of the zoo with random weights."""
    node = {"name": name, "weights": None, "classes": classes, **SETTINGS, **options}
    return shaken(zoo.build(node, classes=classes, seed=seed))


@pytest.fixture(scope="module")
def images():
    """uint8 images of 32 px that differ."""
    return torch.randint(0, 256, (4, 3, 32, 32), generator=torch.Generator().manual_seed(1)).to(torch.uint8)


def branch_of(target, source, number, outputs=(1, 3), keep=1.0, align="scale", **kinds):
    """A branch at a position, or the one of this number, with masks that are no prefix of the filters."""
    there = {position.number: position for position in find_positions(graph(target), graph(source), align)}
    place = number if isinstance(number, Position) else there[number]
    torch.manual_seed(3)
    kinds = {"adapter": "conv1x1_bn", "head": "rows", **kinds}
    branch = Branch(place, graph(source), list(outputs), find_linear_head(graph(target)), **kinds)
    for mask in branch.channel_masks:
        mask.scores.data.uniform_()
    set_keep_ratio(branch.channel_masks, keep)
    for module in branch.adapter.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 1.5)
    return branch.eval()


def test_a_gate_keeps_exactly_its_budget_and_passes_gradients_to_all_scores():
    mask = ChannelMask(10)
    mask.keep.fill_(0.34)
    value = torch.randn(2, 10, 3, 3, requires_grad=True)
    gated = mask(value)
    assert int(mask.kept().sum()) == 3
    assert set(mask.scores.topk(3).indices.tolist()) == set(mask.kept().nonzero().flatten().tolist())
    assert torch.equal(gated != 0, mask.kept().view(1, -1, 1, 1).expand_as(gated))
    gated.sum().backward()
    torch.testing.assert_close(mask.scores.grad, value.detach().sum((0, 2, 3)))


def test_the_budget_falls_along_a_cubic():
    assert anneal_keep_ratio(0, 100, 0.25) == 1
    assert anneal_keep_ratio(35, 100, 0.2) == pytest.approx(0.2 + 0.8 / 8)
    assert anneal_keep_ratio(70, 100, 0.25) == anneal_keep_ratio(100, 100, 0.25) == 0.25
    with pytest.raises(ConfigError, match="keep_ratio=0:"):
        set_keep_ratio([], 0)


@pytest.mark.parametrize("source", ["cnn", "lenet5", "resnet20"])
def test_all_filters_on_is_the_source_bit_for_bit(source, images):
    model = network(source, 5)
    there = find_positions(graph(model), graph(model))
    branches = [branch_of(model, model, position.number) for position in there]
    net = Candidates(model, model, (graph(model), graph(model)), branches)
    values, logits = net.forward_source(model.preprocess(images))
    assert torch.equal(logits, model(images))
    for branch, value in zip(net.branches, values, strict=True):
        assert torch.equal(branch.upper(value)[1], logits)


@pytest.mark.parametrize("head", ["rows", "scale", "full", "concat"])
def test_a_network_joined_to_itself_without_adapter_starts_as_the_direct_ensemble(head, images):
    model = network("resnet20", 5)
    branch = branch_of(model, model, 2, adapter="none", head=head)
    net = Candidates(model, model, (graph(model), graph(model)), [branch]).eval()
    logits = net(images)[:, 0]
    torch.testing.assert_close(logits, torch.cat([model(images), model(images)[:, [1, 3]]], 1))


PAIRS = [("resnet20", "resnet20"), ("resnet18_cifar", "mobilenetv2_cifar"), ("mobilenetv2_cifar", "resnet18_cifar")]
PAIRS += [("shufflenetv2_cifar", "resnet18_cifar"), ("lenet5", "cnn"), ("cnn", "lenet5")]
PAIRS += [(SQUEEZE, "cnn"), ("resnet20", SQUEEZE), (VIT, "cnn"), ("cnn", VIT)]
PAIRS += [pytest.param("resnet50_cifar", "resnet18_cifar", marks=pytest.mark.slow)]


@pytest.mark.parametrize(("target", "source"), PAIRS)
def test_every_pair_gives_logits_low_in_the_middle_and_at_the_end_and_its_clone_the_same(target, source, images):
    size = 32 if {target, source} & {"lenet5", SQUEEZE, VIT} else 16
    host, guest = network(target, 3, size=size), network(source, 5, seed=1, size=size)
    there = find_positions(graph(host), graph(guest))
    probe = find_probe(graph(host), graph(guest))
    assert len(there) >= 3 and probe.target.shape == features_node(graph(host)).meta["shape"][1:]
    for position in (there[1], there[len(there) // 2], probe):
        branch = branch_of(host, guest, position, keep=0.5)
        net = Candidates(host, guest, (graph(host), graph(guest)), [branch]).eval()
        clone = Clone(branch, ["car", "van"])
        cloned = ClonedNetwork(host, NAMES).attach(clone, "clone")
        with torch.no_grad():
            torch.testing.assert_close(cloned(images), net(images)[:, 0], rtol=1e-4, atol=1e-4)
        assert torch.equal(cloned(images)[:, :3], host(images))
        cloned.restore()


@pytest.mark.parametrize("name", ["lenet5", "cnn", "resnet20", "resnet18_cifar", "mobilenetv2_cifar"])
def test_a_network_of_the_same_kind_is_entered_where_the_target_is_left(name):
    there = find_positions(graph(network(name, 3)), graph(network(name, 5, seed=1)))
    assert [position.source.name for position in there] == [position.target.name for position in there]


def test_the_source_is_entered_at_the_same_scale():
    there = find_positions(graph(network("resnet18_cifar", 3)), graph(network("mobilenetv2_cifar", 3)))
    for position in there:
        assert len(position.target.shape) == len(position.source.shape)
        assert position.source.factor >= position.target.factor or position.source.factor == 8


@pytest.fixture
def pair():
    """A target and a source."""
    return network("resnet20", 3), network("cnn", 5, seed=1)


def test_clones_come_and_go_without_touching_each_other_or_the_target(pair, images):
    target, source = pair
    before, alone = digest(target), target(images)
    first, second = (
        Clone(branch_of(target, source, number, outputs), names)
        for number, outputs, names in ((2, [0], ["car"]), (3, [2, 4], ["bus", "van"]))
    )
    cloned = ClonedNetwork(target, NAMES)
    only_second = cloned.attach(second, "b")(images)
    assert cloned.restore() is target and target.training is False
    both = cloned.attach(first, "a").attach(second, "b")
    assert both.class_names == [*NAMES, "car", "bus", "van"] and both(images).shape == (4, 6)
    assert not target.training and not any(p.requires_grad for p in target.parameters())
    assert torch.equal(both.detach("a")(images), only_second)
    assert cloned.train().target.training is False
    restored = cloned.restore()
    assert restored is target and digest(target) == before and torch.equal(restored(images), alone)
    assert all(parameter.requires_grad for parameter in target.parameters())
    one, other = ClonedNetwork(target, NAMES).attach(first, "a"), ClonedNetwork(target, NAMES).attach(second, "b")
    one.restore()
    assert not any(parameter.requires_grad for parameter in target.parameters()), "the other has a clone on it"
    twin = copy.deepcopy(other)
    assert other.restore() is target and all(parameter.requires_grad for parameter in target.parameters())
    assert all(parameter.requires_grad for parameter in twin.restore().parameters()), "a copy gives a copy back"


def test_what_cannot_be_attached_or_(pair):
    target, source = pair
    clone = Clone(branch_of(target, source, 2, [0]), ["car"])
    cloned = ClonedNetwork(target, NAMES).attach(clone, "a")
    with pytest.raises(ConfigError, match="'a': that name is taken"):
        cloned.attach(clone, "a")
    with pytest.raises(ConfigError, match=r"cannot be called 'a\.b'"):
        cloned.attach(clone, "a.b")
    with pytest.raises(ConfigError, match="knows car already"):
        cloned.attach(clone, "b")
    with pytest.raises(ConfigError, match="no clone 'c' to detach; attached are: a"):
        cloned.detach("c")
    with torch.no_grad():
        next(target.parameters()).add_(1)
    with pytest.raises(ConfigError, match="was changed from outside"):
        cloned.restore()


def test_a_head_of_all_classes_answers_alone_and_goes_without_a_trace(tmp_path, pair, images):
    target, source = pair
    before, alone = digest(target), target(images)
    branch = branch_of(target, source, 2, keep=0.5, head="full")
    with torch.no_grad():
        branch.head.fc.weight.add_(0.1 * torch.randn(branch.head.fc.weight.shape))
    net = Candidates(target, source, (graph(target), graph(source)), [branch]).eval()
    clone = Clone(branch, ["car", "van"])
    cloned = ClonedNetwork(target, NAMES).attach(clone, "a")
    expected = cloned(images)
    assert expected.shape == (4, 5) and not torch.allclose(expected[:, :3], alone, atol=0.1)
    torch.testing.assert_close(expected, net(images)[:, 0].detach(), rtol=1e-4, atol=1e-4)
    other = Clone(branch_of(target, source, 2, [0]), ["bus"])
    with pytest.raises(ConfigError, match="clone b: a head of kind full answers"):
        cloned.attach(other, "b")
    path = serialization.save_clone(clone, tmp_path / "c.safetensors", name="c", target=target, source=source)
    assert torch.equal(cloned.restore()(images), alone) and digest(target) == before
    assert torch.equal(pnc.attach(target, path)(images), expected)
    with pytest.raises(ConfigError, match="stands beside no other clone"):
        ClonedNetwork(target, NAMES).attach(other, "b").attach(clone, "a")


@pytest.mark.parametrize("kinds", [{}, {"granularity": "weight"}, {"mask_input": True}], ids=str)
@pytest.mark.parametrize("reference", [False, True])
def test_a_file_brings_the_clone_back(tmp_path, pair, images, reference, kinds):
    target, source = pair
    clone = Clone(branch_of(target, source, 2, keep=0.5, **kinds), ["car", "van"])
    wanted = ClonedNetwork(target, NAMES).attach(clone, "clone")
    expected = wanted(images)
    wanted.restore()
    path = serialization.save_clone(
        clone, tmp_path / "c.safetensors", name="c", target=target, source=source, reference=reference
    )
    again = pnc.attach(target, path, sources=[source] if reference else [])
    assert torch.equal(again(images), expected) and list(again.clones) == ["c"]
    assert again.restore() is target
    card = pnc.read_cards(path)["c"]
    assert card["class_names"] == ["car", "van"] and card["source"]["name"] == source.name
    whole = serialization.save_clone(clone, tmp_path / "w.safetensors", name="c", target=target, source=source)
    assert not reference or path.stat().st_size < whole.stat().st_size / 2
    assert {key: card[key] for key in kinds} == kinds


def test_a_file_brings_back_a_clone_whose_residual_streams_are_masked(tmp_path, images):
    target, source = network("cnn", 3, size=16), network("resnet18_cifar", 5, seed=1, size=16)
    branches = [branch_of(target, source, 2, keep=0.4, residual=kind) for kind in ("none", "stage")]
    fewer, clone = (Clone(branch, ["car", "van"]) for branch in branches)
    assert clone.count_parameters()["module_parameters"] < 0.5 * fewer.count_parameters()["module_parameters"]
    cloned = ClonedNetwork(target, NAMES).attach(clone, "c")
    expected, path = cloned(images), tmp_path / "c.safetensors"
    net = Candidates(target, source, (graph(target), graph(source)), [branches[1]])
    (value,), features, _ = net.forward_target(target.preprocess(images))
    torch.testing.assert_close(expected[:, 3:], branches[1](value, features), rtol=1e-4, atol=1e-4)
    pnc.save_clone(clone, path, name="c", target=target, source=source, reference=True)
    cloned.restore()
    assert torch.equal(pnc.attach(target, path, sources=[source])(images), expected)


def test_files_of_version_0_1_are_read(tmp_path, pair, images):
    target, source = pair
    clone = Clone(branch_of(target, source, 2, keep=0.5), ["car", "van"])
    path = serialization.save_clone(clone, tmp_path / "c.safetensors", name="c", target=target, source=source)
    (new,) = serialization.read_clones(path)
    content = json.dumps({"format": 2, "cards": [new.card]})
    tensors = {f"c/{key}": value for key, value in new.tensors.items()}
    save_file(tensors, tmp_path / "old.safetensors", {"clones": content})
    (old,) = serialization.read_clones(tmp_path / "old.safetensors")
    assert old.card == new.card and old.tensors.keys() == new.tensors.keys()
    expected = pnc.attach(target, path)(images)
    assert torch.equal(pnc.attach(target, tmp_path / "old.safetensors")(images), expected)


def test_clones_of_files_come_and_go_by_name(tmp_path, pair, images):
    target, source = pair
    alone, paths = target(images), []
    for name, outputs, classes in (("c", [0], ["car"]), ("d", [2], ["van"]), ("c", [4], ["bus"])):
        clone = Clone(branch_of(target, source, 2, outputs), classes)
        about = {"name": name, "target": target, "source": source, "target_class_names": NAMES}
        paths.append(serialization.save_clone(clone, tmp_path / f"{classes[0]}.safetensors", **about))
    cloned = pnc.attach(target, paths[0])
    assert cloned.attach(paths[1]) is cloned and cloned.attach(paths[2]).class_names == [*NAMES, "car", "van", "bus"]
    held = {name: card["class_names"] for name, card in cloned.list().items()}
    assert list(held.items()) == [("c", ["car"]), ("d", ["van"]), ("c2", ["bus"])]
    assert cloned.detach("c") is cloned and list(cloned.list()) == ["d", "c2"]
    assert cloned.restore() is target and torch.equal(target(images), alone)


def test_a_clone_on_a_plain_network(tmp_path, pair, images):
    target, source = pair
    clone = Clone(branch_of(target, source, 2), ["car", "van"])
    path = serialization.save_clone(clone, tmp_path / "c.safetensors", name="c", target=target, source=source)
    expected = ClonedNetwork(target, NAMES).attach(clone, "clone")(images)
    cloned = ClonedNetwork(target.net, size=32).attach(pnc.load_clones(target.net, path, size=32)["c"], "c")
    torch.testing.assert_close(cloned(target.preprocess(images)), expected)
    assert cloned.class_names == ["class 0", "class 1", "class 2", "car", "van"]
    cloned.restore()
    torch.testing.assert_close(pnc.attach(target.net, path)(target.preprocess(images)), expected)


def test_files_that_do_not_fit_are_refused(tmp_path, pair):
    target, source = pair
    clone = Clone(branch_of(target, source, 2), ["car", "van"])
    path = serialization.save_clone(
        clone, tmp_path / "c.safetensors", name="c", target=target, source=source, reference=True
    )
    with pytest.raises(ConfigError, match="made with a target of weights"):
        pnc.attach(network("resnet20", 3, seed=5), path, sources=[source])
    with pytest.raises(ConfigError, match="holds no weights of its source, cnn"):
        pnc.attach(target, path)
    with pytest.raises(ConfigError, match=r"holds no weights of its source, cnn .*; none of cnn is that one"):
        pnc.attach(target, path, sources=[network("cnn", 5, seed=9)])
    other = zoo.save(target, tmp_path / "net.safetensors", {})
    with pytest.raises(ConfigError, match="a clone file is needed"):
        pnc.attach(target, other)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ConfigError, match="cannot be read"):
        pnc.attach(target, path)


@pytest.mark.parametrize(("target", "source"), [("lenet5", "cnn"), ("cnn", "lenet5"), ("cnn", SQUEEZE)])
def test_new_rows_at_the_probes_place_are_an_affine_map_of_what_enters_the_targets_classifier(target, source, images):
    """Whatever the images, and though the source has layers of its own there: no layer of it is cloned."""
    host, guest = network(target, 3), network(source, 5, seed=1)
    assert not clones_layers(graph(guest), find_probe(graph(host), graph(guest)))
    branch = branch_of(host, guest, find_probe(graph(host), graph(guest)), adapter="conv1x1")
    torch.nn.init.normal_(branch.head.fc.weight)
    shape = features_node(graph(host)).meta["shape"][1:]
    a, b = torch.randn(2, 4, *shape)
    at_a, at_b, between = (branch(value, value.flatten(1)) for value in (a, b, 0.3 * a + 0.7 * b))
    torch.testing.assert_close(between, 0.3 * at_a + 0.7 * at_b, rtol=1e-4, atol=1e-4)


class Spread(torch.nn.Sequential):
    """Maps, a convolution to the classes and the mean of what it says; `side` pixels of its kernel."""

    def __init__(self, side):
        layers = [torch.nn.Conv2d(3, 8, 3, 2), torch.nn.ReLU(), torch.nn.Conv2d(8, 5, side)]
        super().__init__(*layers, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())


def test_a_convolution_of_one_pixel_is_a_linear_classifier_of_the_mean(images):
    net = Spread(1).eval()
    found, maps = find_linear_head(traced(net, 32)), net[1](net[0](images.float()))
    said = torch.nn.functional.linear(maps.mean((2, 3)), found.weight, found.bias)
    torch.testing.assert_close(said, net(images.float()), rtol=1e-4, atol=1e-3)
    with pytest.raises(ConfigError, match=r"ends in a convolution of \[3, 3\] pixels; cloning needs a linear"):
        find_linear_head(traced(Spread(3).eval(), 32))
