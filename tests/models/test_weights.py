"""Checkpoints: strictness, wrappers, no foreign code, exact round trips."""

import argparse
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from recombine.core.errors import ConfigError
from recombine.core.files import write_tensors
from recombine.models import build, check, save
from recombine.models.serialization import read_card
from recombine.models.weight_files import description
from recombine.models.weights import load, read

IMAGES = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model():
    return build("resnet8", classes=10, seed=4)


def fresh():
    return build("resnet8", classes=10, seed=5).net


def prefixed(state, prefix):
    return {prefix + key: value for key, value in state.items()}


FORMS = {
    "plain": lambda s: s,
    "DataParallel": lambda s: {"state_dict": prefixed(s, "module."), "epoch": 3, "best": torch.tensor(91.0)},
    "DDP of compile": lambda s: {"model": prefixed(s, "module._orig_mod.")},
    "compile of DDP": lambda s: prefixed(s, "_orig_mod.module."),
    "Lightning": lambda s: {"state_dict": {**prefixed(s, "model."), "metric.total": torch.zeros(3)}, "epoch": 1},
    "AveragedModel": lambda s: {"n_averaged": torch.tensor(5), **prefixed(s, "module.")},
    "a part of another": lambda s: prefixed(s, "backbone."),
    "another key": lambda s: {"params": s, "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}}},
    "with settings": lambda s: {
        "state_dict": s,
        "args": argparse.Namespace(lr=0.1, path=Path("x")),
        "acc": np.float64(9),
    },
    "fp16": lambda s: {k: v.half() if v.is_floating_point() else v for k, v in s.items()},
    "no counters": lambda s: {k: v for k, v in s.items() if not k.endswith("num_batches_tracked")},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("zipped", [True, False])
def test_a_network_is_found_wherever_a_trainer_put_it(model, tmp_path, form, zipped):
    path = tmp_path / "x.pth"
    torch.save(FORMS[form](model.net.state_dict()), path, _use_new_zipfile_serialization=zipped)
    net = fresh()
    load(net, path)
    for key, value in model.net.state_dict().items():
        if form != "no counters" or not key.endswith("num_batches_tracked"):
            torch.testing.assert_close(net.state_dict()[key], value, rtol=1e-3 if form == "fp16" else 0, atol=1e-6)


@pytest.mark.parametrize(
    "form",
    [
        lambda raw, ema: {"state_dict": raw, "state_dict_ema": ema},
        lambda raw, ema: {"model": prefixed(raw, "module."), "model_ema": prefixed(ema, "module.")},
        lambda raw, ema: {"model": raw, "ema": ema},
    ],
)
def test_of_weights_and_their_average_the_average_is_taken_and_said(model, tmp_path, form):
    raw = model.net.state_dict()
    ema = {k: v + 1 if v.is_floating_point() else v for k, v in raw.items()}
    torch.save(form(raw, ema), tmp_path / "x.pth")
    node = {"name": "resnet8", "weights": str(tmp_path / "x.pth")}
    for use_ema, state, tag in ((None, ema, " (weights: ema)"), (True, ema, " (weights: ema)"), (False, raw, "")):
        built = build({**node, "use_ema": use_ema})
        assert torch.equal(built.net.conv1.weight, state["conv1.weight"]) and built.tag == f"x.pth{tag}"
    torch.save(raw, tmp_path / "x.pth")
    with pytest.raises(ConfigError, match="holds no average of weights"):
        build({**node, "use_ema": True})


def test_several_networks_in_a_file_are_named(model, tmp_path):
    state = model.net.state_dict()
    torch.save({"student": prefixed(state, "module."), "teacher": prefixed(state, "module.")}, tmp_path / "x.pth")
    with pytest.raises(ConfigError, match=r"holds 2 networks of this form \(student.module, teacher.module\)"):
        load(fresh(), tmp_path / "x.pth")
    partly = {k: v for k, v in prefixed(state, "backbone.").items() if "linear" not in k}
    torch.save({**partly, "head.weight": torch.zeros(3, 64)}, tmp_path / "x.pth")
    with pytest.raises(ConfigError, match=r"what stands behind 'backbone.' was compared.*2 missing .*linear.weight"):
        load(fresh(), tmp_path / "x.pth")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(model, tmp_path, value):
    state = {k: v.clone() for k, v in model.net.state_dict().items()}
    state["layer1.0.conv1.weight"][0] = value
    save_file(state, tmp_path / "x.safetensors")
    with pytest.raises(ConfigError, match=r"no numbers \(NaN or infinite\) in layer1.0.conv1.weight"):
        load(fresh(), tmp_path / "x.safetensors")


def test_the_number_of_classes_is_read_off_the_file(model, tmp_path):
    torch.save(prefixed(model.net.state_dict(), "module."), tmp_path / "x.pth")
    built = build({"name": "mine", "architecture": "cifar_resnet", "depth": 8, "size": 32, "mean": 0.5, "std": 0.5,
                   "weights": str(tmp_path / "x.pth")})  # fmt: skip
    assert built.classes == 10 and torch.equal(built.net.linear.weight, model.net.linear.weight)
    plain = timm.create_model("resnet10t", num_classes=7)
    torch.save(plain.state_dict(), tmp_path / "y.pth")
    node = {"name": "timm:resnet10t", "weights": str(tmp_path / "y.pth")}
    assert check(node, classes=7, frozen=True) == [] and build(node).classes == 7
    assert build(node, classes=3).classes == 3


def test_every_disagreement_is_named(model, tmp_path):
    state = model.net.state_dict()
    del state["layer2.0.bn1.weight"]
    state["extra"] = torch.zeros(1)
    state["linear.weight"] = torch.zeros(100, 64)
    save_file(state, tmp_path / "x.safetensors")
    net = fresh()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(ConfigError) as error:
        load(net, tmp_path / "x.safetensors")
    for part in (
        "1 missing in the file: layer2.0.bn1.weight",
        "1 unexpected in the file: extra",
        "linear.weight (file (100, 64), network (10, 64))",
    ):
        assert part in str(error.value)
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in before.items())


class Trap:
    """Would create a file if it were unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_foreign_code_is_not_run(tmp_path):
    torch.save({"state_dict": {}, "args": Trap(str(tmp_path / "sprung"))}, tmp_path / "x.pth")
    with pytest.raises(ConfigError, match=r"an object of (posix|nt)\.mkdir, whose code reading it would run"):
        read(tmp_path / "x.pth")
    assert not (tmp_path / "sprung").exists()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0"


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"not a checkpoint", "damaged"),
        (b"\x80\x02", "damaged|rename it"),
        (LFS, "git lfs pull"),
        (b"<!DOCTYPE html><html>Too many requests</html>", "is a web page"),
    ],
)
def test_damaged_files_are_named(tmp_path, suffix, content, said):
    path = tmp_path / f"x{suffix}"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"x{suffix} .*({said})"):
        read(path)


def test_a_file_under_the_name_of_another_format_is_told(model, tmp_path):
    save_file(model.net.state_dict(), tmp_path / "x.pth")
    torch.save(model.net.state_dict(), tmp_path / "x.safetensors")
    for path, kind in ((tmp_path / "x.pth", "safetensors"), (tmp_path / "x.safetensors", "torch")):
        with pytest.raises(ConfigError, match=f"is a {kind} file by its content: rename it"):
            read(path)


def test_a_file_without_tensors_is_named(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "x.pt")
    with pytest.raises(ConfigError, match="no tensors by name"):
        read(tmp_path / "x.pt")


def test_round_trip_is_exact(model, tmp_path):
    model.net.bn1.running_mean.fill_(0.3)
    path = save(model, tmp_path / "deep" / "x.safetensors", {"why": "test", "accuracy": 12.5})
    again = build(str(path))
    assert again.digest() == model.digest()
    assert torch.equal(again(IMAGES), model(IMAGES))
    assert (again.name, again.classes, again.tag) == ("resnet8", 10, "x.safetensors")
    card = read_card(path, "student", {"model": dict})
    assert card.pop("model") == model.description() and card == {"why": "test", "accuracy": 12.5}
    assert [p.name for p in path.parent.iterdir()] == ["x.safetensors"]
    assert check(str(path), classes=10, frozen=True) == []


def test_channels_last_weights_are_saved_as_they_are(model, tmp_path):
    digest = model.digest()
    path = save(model.to(memory_format=torch.channels_last), tmp_path / "x.safetensors", {})
    assert build(str(path)).digest() == digest == model.digest()


def test_a_saved_timm_network_loads_in_plain_timm(tmp_path):
    model = build({"name": "timm:resnet10t", "weights": None}, classes=5)
    path = save(model, tmp_path / "student.safetensors", {})
    plain = timm.create_model("resnet10t", num_classes=5).eval()
    plain.load_state_dict(load_file(path))
    with torch.no_grad():
        assert torch.equal(plain(model.preprocess(IMAGES)), model(IMAGES))
    assert build(str(path)).digest() == model.digest()
    assert description(path)["architecture"] == "timm:resnet10t"


def test_a_foreign_file_needs_an_architecture(model, tmp_path):
    save_file(model.net.state_dict(), tmp_path / "x.safetensors")
    with pytest.raises(ConfigError, match="does not say which network"):
        build(str(tmp_path / "x.safetensors"))
    node = {"name": "resnet8", "classes": 10, "weights": "x.safetensors"}
    assert build(node, weights_root=tmp_path).digest() == model.digest()


@pytest.mark.parametrize("kind", ["patch", "clone"])
def test_a_patch_or_clone_is_no_network(tmp_path, kind):
    path = tmp_path / "x.safetensors"
    save_file({"weight": torch.zeros(1)}, path, {"kind": kind, "format": "1", "card": "{}"})
    with pytest.raises(ConfigError, match=rf"is a {kind}, no network; .*--{kind}"):
        build(str(path))


def test_digest_sees_one_weight_and_the_preprocessing(model):
    before = model.digest()
    model.name = model.tag = "renamed"
    assert model.digest() == before
    with torch.no_grad():
        model.net.layer3[0].conv2.weight[0, 0, 0, 0] += 1e-6
    assert model.digest() != before


@pytest.mark.parametrize(
    "change", [{"mean": 0.3}, {"std": 0.3}, {"size": 24}, {"crop_pct": 0.9}, {"interpolation": "bicubic"}]
)
def test_digest_sees_each_setting_of_the_preprocessing(change):
    """Predictions of one network are not those of the same weights that see other pixels."""
    node = {"name": "resnet8", "weights": None, "mean": 0.5, "std": 0.5, "size": 32, "crop_pct": 1.0}
    plain, other = (build({**node, **more}, classes=10, seed=4) for more in ({}, change))
    assert plain.digest() != other.digest()


def card_with(path, **changes):
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    card = json.loads(metadata["card"])
    write_tensors(path, tensors, {**metadata, "card": json.dumps({**card, "model": {**card["model"], **changes}})})


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"options": None}, "options"),
        ({"architecture": None}, "architecture"),
        ({"classes": -5}, "classes=-5"),
        ({"size": 10**9}, "size=1000000000"),
        ({"size": 1e9}, r"size=1000000000\.0: a whole number"),
        ({"mean": "abc"}, "mean=abc"),
        ({"tag": 3}, "tag=3"),
        ({"name": ""}, "name"),
        ({"architecture": "hf-hub:evil/repo"}, "not in the Hugging Face cache"),
        ({"architecture": "hf-hub:../../evil"}, "not in the Hugging Face cache"),
        ({"architecture": "timm:resnet18", "options": {"checkpoint_path": "/etc/passwd"}}, "checkpoint_path is no"),
        ({"architecture": "os.system", "options": {}}, "os.system is not a network"),
    ],
)
def test_an_absurd_card_is_one_sentence_and_asks_no_network(model, tmp_path, monkeypatch, changes, told):
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("a network was asked"))
    path = save(model, tmp_path / "m.safetensors", {})
    card_with(path, **changes)
    problems = check(str(path))
    assert len(problems) == 1 and re.search(told, problems[0])
    with pytest.raises(ConfigError, match=told):
        build(str(path))


def test_a_changed_bit_of_the_weights_is_refused(model, tmp_path):
    path = save(model, tmp_path / "m.safetensors", {})
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"m\.safetensors is damaged: its content is not what was written"):
        build(str(path))
