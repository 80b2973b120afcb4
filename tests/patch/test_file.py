"""Patch files: written, put on a network in a fresh start, refused on a wrong one, removed."""

from __future__ import annotations

import copy
import json
import sys

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from recombine import patch
from recombine.core.errors import ConfigError, RecombineError
from recombine.models.graph import traced
from recombine.patch.adapters import NormAdaptation, ResidualAdapters
from recombine.patch.delta import Delta
from recombine.patch.lora import LoRA, ScaleShift
from recombine.patch.patched import HeadOnly, TaskNetwork

MAKERS = {
    "delta": lambda graph: Delta(graph, 4, modules=2),
    "head": lambda graph: HeadOnly(graph, 4),
    "parallel": lambda graph: ResidualAdapters(graph, 4, position="parallel"),
    "series": lambda graph: ResidualAdapters(graph, 4, position="series"),
    "norms": lambda graph: NormAdaptation(graph, 4),
    "lora": lambda graph: LoRA(graph, 4, rank=2, alpha=4),
    "ssf": lambda graph: ScaleShift(graph, 4),
    "headless": lambda graph: Delta(graph, 0, modules=1),
}


def made(model, kind, path, name="letters"):
    torch.manual_seed(3)
    patched = TaskNetwork(model, MAKERS[kind](traced(model))).eval()
    patch.save(patched, path, name=name, class_names=list("abcd")[: patched.patch.classes], size=32)
    return patched


@pytest.mark.parametrize("kind", MAKERS)
def test_a_patch_survives_the_file(resnet20, images, tmp_path, kind):
    patched = made(resnet20, kind, tmp_path / "p.safetensors")
    again = patch.load(copy.deepcopy(resnet20), tmp_path / "p.safetensors")
    with torch.no_grad():
        assert torch.equal(again(images), patched(images))


def test_three_lines_on_a_plain_timm_model(tmp_path):
    torch.manual_seed(0)
    net = timm.create_model("resnet18", num_classes=7).eval()
    before, x = copy.deepcopy(net.state_dict()), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        logits = net(x)
        for name in ("one", "two"):
            made(net, "delta", tmp_path / f"{name}.safetensors", name)
        patched = patch.attach(net, tmp_path / "one.safetensors")
        alone = patched(x, "one")
        patched = patch.attach(patched, tmp_path / "two.safetensors", "second")
        assert list(patched.list()) == ["one", "second"] and patched.list()["one"]["class_names"] == list("abcd")
        assert torch.equal(patched(x), logits) and torch.equal(patched(x, "one"), alone)
        assert patched(x, "second").shape == (2, 4)
        with pytest.raises(ConfigError, match=r"no patch for task 'three'; attached are: one, second"):
            patched(x, "three")
        assert list(patched.detach("one").list()) == ["second"]
        assert patched.restore() is net and torch.equal(net(x), logits)
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


def test_the_base_is_frozen_while_a_patch_is_on_it_and_comes_back_as_it_was(resnet20, images, tmp_path):
    for name in ("one", "two"):
        made(copy.deepcopy(resnet20), "delta", tmp_path / f"{name}.safetensors", name)
    resnet20.train().requires_grad_(True)
    resnet20.net.layer1.eval().requires_grad_(False)
    before = {key: value.clone() for key, value in resnet20.state_dict().items()}
    modes = [module.training for module in resnet20.modules()]
    flags = [parameter.requires_grad for parameter in resnet20.parameters()]
    system = patch.attach(patch.attach(resnet20, tmp_path / "one.safetensors"), tmp_path / "two.safetensors")
    system.train()
    system(images)
    (system(images, "one").sum() + system(images, "two").sum()).backward()
    assert not any(module.training for module in resnet20.modules())
    assert all(parameter.grad is None for parameter in resnet20.parameters())
    assert all(torch.equal(before[key], value) for key, value in resnet20.state_dict().items())
    system.detach("one")
    assert not any(parameter.requires_grad for parameter in resnet20.parameters())
    assert system.restore() is resnet20
    assert [module.training for module in resnet20.modules()] == modes
    assert [parameter.requires_grad for parameter in resnet20.parameters()] == flags


def test_a_refused_patch_leaves_the_network_in_its_mode(resnet20, tmp_path):
    made(resnet20, "delta", tmp_path / "p.safetensors")
    other = copy.deepcopy(resnet20).train().requires_grad_(True)
    with torch.no_grad():
        other.net.bn1.bias += 1
    with pytest.raises(ConfigError, match="was made for"):
        patch.attach(other, tmp_path / "p.safetensors")
    assert all(module.training for module in other.modules()) and other.net.bn1.bias.requires_grad


def test_a_wrong_base_is_refused(resnet20, tmp_path):
    made(resnet20, "delta", tmp_path / "p.safetensors")
    other = copy.deepcopy(resnet20)
    other.net.bn1.running_mean[0] += 1e-6
    with pytest.raises(ConfigError, match=r"was made for a CifarResNet with weights .* load the base"):
        patch.load(other, tmp_path / "p.safetensors")


def test_a_file_that_is_no_patch(resnet20, tmp_path):
    (tmp_path / "p.safetensors").write_bytes(b"nothing")
    with pytest.raises(ConfigError, match="cannot be read"):
        patch.load(resnet20, tmp_path / "p.safetensors")


DAMAGES = {
    "no JSON": (lambda card: "{", "its card cannot be read"),
    "a list": (lambda card: [1], "its card cannot be read"),
    "no base": (lambda card: {k: v for k, v in card.items() if k != "base"}, "its card does not say base"),
    "another kind": (lambda card: card | {"kind": "gamma"}, "its kind, gamma, is none of delta, head_only"),
    "another option": (lambda card: card | {"options": {"gamma": 1}}, "gamma"),
    "a wrong option": (lambda card: card | {"options": {"weights": "gamma"}}, "method.weights=gamma"),
    "fewer modules": (lambda card: card | {"options": card["options"] | {"modules": 1}}, "Unexpected key"),
    "another width": (lambda card: card | {"classes": 1, "class_names": ["a"]}, "size mismatch for head.weight"),
    "too few names": (lambda card: card | {"class_names": ["a"]}, "its card names 1 classes of 4"),
}


def rewritten(path, change=lambda card: card, **metadata):
    """Write a patch file again with another card, or as another version."""
    with safe_open(path, "pt") as file:
        found = {key: value for key, value in file.metadata().items() if key != "digest"}  # as if written so
    changed = change(json.loads(found["card"]))
    card = changed if isinstance(changed, str) else json.dumps(changed)
    save_file(load_file(path), path, found | {"card": card} | metadata)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_told_in_one_sentence(resnet20, tmp_path, damage):
    made(resnet20, "delta", path := tmp_path / "p.safetensors")
    change, message = DAMAGES[damage]
    rewritten(path, change)
    with pytest.raises(ConfigError, match=rf"p.safetensors is damaged(.|\n)*{message}"):
        patch.attach(resnet20, path)


class Halved(HeadOnly):
    """A patch of somebody's own."""


def test_a_class_of_ones_own_is_found_once_its_module_is_imported(resnet20, tmp_path, monkeypatch):
    monkeypatch.setitem(MAKERS, "halved", lambda graph: Halved(graph, 4))
    made(resnet20, "halved", path := tmp_path / "p.safetensors")
    monkeypatch.setitem(sys.modules, Halved.__module__, sys.modules[__name__])
    assert isinstance(patch.load(resnet20, path).patch, Halved)
    rewritten(path, lambda card: card | {"kind": "not_there.Halved"})
    with pytest.raises(ConfigError, match=r"its kind, not_there.Halved, is none of .* nor a class of a module"):
        patch.load(resnet20, path)


def test_a_later_format_is_refused(resnet20, tmp_path):
    made(resnet20, "delta", path := tmp_path / "p.safetensors")
    rewritten(path, format="2")
    with pytest.raises(ConfigError, match="of another version: its card is not of format 1"):
        patch.attach(resnet20, path)


def test_files_of_version_0_1_are_read(resnet20, images, tmp_path):
    """They have the card, with its format, under another key."""
    patched = made(resnet20, "delta", path := tmp_path / "p.safetensors")
    card = {**patch.read_card(path), "format": 1}
    save_file(load_file(path), path, {"patch": json.dumps(card)})
    assert patch.read_card(path) == card
    with torch.no_grad():
        assert torch.equal(patch.attach(resnet20, path)(images, "letters"), patched(images))
    save_file(load_file(path), path, {"patch": json.dumps({**card, "format": 2})})
    with pytest.raises(ConfigError, match="its card is not of format 1"):
        patch.read_card(path)


def test_restore_sees_a_change_of_the_base(resnet20, tmp_path):
    made(resnet20, "head", tmp_path / "p.safetensors")
    network = patch.attach(resnet20, tmp_path / "p.safetensors")
    with pytest.raises(ConfigError, match="no patch 'cars' to detach; attached are: letters"):
        network.detach("cars")
    with torch.no_grad():
        resnet20.net.bn1.bias += 1
    with pytest.raises(RecombineError, match=r"the weights of .* something else changed them"):
        network.restore()
    assert network.list() == {}


def test_a_safetensors_file_without_card_is_no_patch(resnet20, tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "p.safetensors")
    with pytest.raises(ConfigError, match=r"is no file of ours; a patch file is needed: main_patch.py"):
        patch.load(resnet20, tmp_path / "p.safetensors")


def test_a_network_in_another_precision_is_told_so(resnet20, tmp_path):
    made(resnet20, "delta", tmp_path / "p.safetensors")
    with pytest.raises(ConfigError, match="they are float16: put the patch on the network in float32"):
        patch.load(copy.deepcopy(resnet20).half(), tmp_path / "p.safetensors")


@pytest.mark.parametrize("name", ["a.b", "base", "auto", "my cars"])
def test_names_no_patch_can_have(resnet20, tmp_path, name):
    made(resnet20, "head", tmp_path / "p.safetensors", name)
    with pytest.raises(ConfigError, match=f"'{name}' .*; give the patch another name: attach"):
        patch.attach(resnet20, tmp_path / "p.safetensors")
    assert list(patch.attach(resnet20, tmp_path / "p.safetensors", "keys").list()) == ["keys"]


def test_a_name_is_given_once(resnet20, tmp_path):
    made(resnet20, "head", tmp_path / "p.safetensors")
    system = patch.attach(resnet20, tmp_path / "p.safetensors")
    with pytest.raises(ConfigError, match="a patch 'letters' is attached already; give the patch another name"):
        patch.attach(system, tmp_path / "p.safetensors")


def test_every_class_has_a_name(resnet20, tmp_path):
    patched = TaskNetwork(resnet20, MAKERS["head"](traced(resnet20)))
    with pytest.raises(ConfigError, match="3 class names were given for a patch of 4 classes"):
        patch.save(patched, tmp_path / "p.safetensors", name="letters", class_names=list("abc"))


def test_the_file_holds_the_patch_alone(resnet20, tmp_path):
    patched = made(resnet20, "delta", tmp_path / "p.safetensors")
    size = (tmp_path / "p.safetensors").stat().st_size
    tensors = sum(value.numel() * value.element_size() for value in patched.patch.state_dict().values())
    assert tensors < size < tensors + 6000


def test_a_failed_save_leaves_the_file_before(resnet20, tmp_path, monkeypatch):
    made(resnet20, "delta", tmp_path / "p.safetensors")
    before = (tmp_path / "p.safetensors").read_bytes()

    def failing(state, path, card):
        path.write_bytes(b"half a file")
        raise OSError("no space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", failing)
    with pytest.raises(OSError, match="no space"):
        made(resnet20, "head", tmp_path / "p.safetensors")
    assert (tmp_path / "p.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["p.safetensors"]
