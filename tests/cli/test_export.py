"""recombine export: every kind of network leaves as a file that computes the same without this project."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

import onnxruntime
import pytest
import torch
import yaml
from huggingface_hub import HfApi, RepoUrl
from PIL import Image
from torch import nn

from recombine import models, patch
from recombine.cli import export
from recombine.cli.hub import push
from recombine.core.errors import ConfigError, RecombineError
from recombine.models.export import compare_objects, export_network
from recombine.models.graph import traced
from recombine.patch.delta import Delta
from recombine.patch.dense.serialization import save_dense
from recombine.patch.dense.training import patch_encoder
from recombine.patch.patched import TaskNetwork
from recombine.pnc.clone.branch import Branch, find_linear_head
from recombine.pnc.clone.cloned_network import ClonedNetwork
from recombine.pnc.clone.part import Clone
from recombine.pnc.clone.positions import find_positions
from tests.networks import shaken

SIZE = {"size": 32, "mean": [0.4] * 3, "std": [0.3] * 3}
NAMES = ["a", "b", "c"]


def network(name: str, classes: int = 3, seed: int = 0):
    return shaken(models.build({"name": name, "weights": None, "classes": classes, **SIZE}, classes=classes, seed=seed))


@pytest.fixture
def images():
    return torch.randint(0, 256, (5, 3, 32, 32), generator=torch.Generator().manual_seed(1)).to(torch.uint8)


def outputs(path, images):
    """What a file computes, by what its reader has."""
    if path.suffix == ".onnx":
        return torch.from_numpy(onnxruntime.InferenceSession(str(path)).run(None, {"images": images.numpy()})[0])
    card = {"card.json": ""}
    program = torch.export.load(path, extra_files=card)
    assert json.loads(card["card.json"])["class_names"]
    return program.module()(images)


def run(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["export", *map(str, words)])
    export.main()


def test_a_network_and_a_patch_on_it(tmp_path, monkeypatch, images):
    base = network("resnet8")
    models.save(base, tmp_path / "base.safetensors", {})
    patched = TaskNetwork(base, Delta(traced(base), 4, modules=1)).eval()
    patch.save(patched, tmp_path / "patch.safetensors", name="four", class_names=list("wxyz"), tasks=[], metrics={})
    expected = {"base": base(images), "four": patched(images)}
    patched.restore()
    (tmp_path / "images").mkdir()
    Image.fromarray(images[0].permute(1, 2, 0).numpy()).save(tmp_path / "images" / "0.png")
    words = ["--model", tmp_path / "base.safetensors", "--images", tmp_path / "images"]
    files = {"base": tmp_path / "base.pt2", "four": tmp_path / "four.onnx"}
    run(monkeypatch, *words, files["base"])
    run(monkeypatch, *words, "--patch", tmp_path / "patch.safetensors", files["four"])
    for name, file in files.items():
        torch.testing.assert_close(outputs(file, images), expected[name], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(outputs(file, images[:1]), expected[name][:1], rtol=1e-4, atol=1e-4)
    assert json.loads((tmp_path / "four.labels.json").read_text()) == list("wxyz")


@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
def test_a_cloned_network(tmp_path, images, suffix):
    target, source = network("resnet8"), network("resnet8", seed=1)
    graphs = traced(target), traced(source)
    place = next(place for place in find_positions(*graphs, "scale") if place.number == 2)
    branch = Branch(place, graphs[1], [0, 2], find_linear_head(graphs[0]), adapter="conv1x1_bn", head="rows").eval()
    cloned = ClonedNetwork(target, NAMES).attach(Clone(branch, ["x", "y"]))
    path = tmp_path / f"cloned{suffix}"
    equality = export_network(cloned, path, 32, {"class_names": cloned.class_names}, images)
    assert equality.agreement == 100
    torch.testing.assert_close(outputs(path, images), cloned(images), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_patched_segmentation_network_is_one_file(tmp_path, monkeypatch):
    node = {"name": "small", "architecture": "lraspp", "backbone": "mobilenetv2_035", "weights": None, **SIZE}
    base = shaken(models.build(node, classes=5))
    models.save(base, tmp_path / "base.safetensors", {"class_names": list("vwxyz")})
    model = shaken(models.build({**node, "size": 64}, classes=3))
    model.net.backbone.load_state_dict(base.net.backbone.state_dict())
    patch_encoder(model, partial(Delta, modules="all"), "task", 0)
    file = save_dense(model.eval(), tmp_path / "masks.safetensors", name="masks", class_names=NAMES)
    words = ["--model", tmp_path / "base.safetensors", "--patch", file, "--model-card", tmp_path / "card.md"]
    run(monkeypatch, *words, tmp_path / "masks.pt2")
    images = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(outputs(tmp_path / "masks.pt2", images), model(images), rtol=1e-4, atol=1e-4)
    assert json.loads((tmp_path / "masks.labels.json").read_text()) == NAMES
    card = (tmp_path / "card.md").read_text()
    assert "pipeline_tag: image-segmentation" in card and "3 classes" in card and "64 x 64 pixels" in card


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
def test_a_patched_detector_is_one_file(tmp_path, monkeypatch, suffix):
    node = {"name": "small", "architecture": "faster_rcnn", "backbone": "mobilenetv2_035", "weights": None, **SIZE}
    node |= {"size": 64, "channels": 16, "hidden": 32, "rois": 16, "anchor": 3}
    base, model = (shaken(models.build(node, classes=classes)) for classes in (5, 3))
    models.save(base, tmp_path / "base.safetensors", {"class_names": list("vwxyz")})
    model.net.backbone.body.load_state_dict(base.net.backbone.body.state_dict())
    patch_encoder(model, partial(Delta, modules="all"), "task", 0)
    file = save_dense(model.eval(), tmp_path / "boxes.safetensors", name="boxes", class_names=NAMES)
    (tmp_path / "images").mkdir()
    wide = torch.randint(0, 256, (48, 64, 3), generator=torch.Generator().manual_seed(3)).to(torch.uint8)
    Image.fromarray(wide.numpy()).save(tmp_path / "images" / "0.png")
    words = ["--model", tmp_path / "base.safetensors", "--patch", file, "--model-card", tmp_path / "card.md"]
    run(monkeypatch, *words, "--images", tmp_path / "images", tmp_path / f"boxes{suffix}")
    image = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    image[0, :, 8:56] = wide.permute(2, 0, 1)
    with torch.no_grad():
        expected = model(image)
    assert (expected[0, :, 5] >= 0).sum() > 3
    torch.testing.assert_close(outputs(tmp_path / f"boxes{suffix}", image), expected, rtol=1e-3, atol=1e-3)
    card = (tmp_path / "card.md").read_text()
    assert "pipeline_tag: object-detection" in card and "| 5 images |" in card and "[1, 100, 6]" in card


@pytest.mark.parametrize(
    ("row", "agreement", "difference"),
    [
        ([4, 8, 20, 30, 0.9, 1], 100, 0),
        ([4, 8, 20, 30.03, 0.9, 1], 100, 0.03 / 64),
        ([4, 8, 20, 30, 0.9005, 1], 100, 0.0005),
        ([4, 8, 20, 30, 0.9, 2], 50, 0),
        ([4, 8, 22, 30, 0.9, 1], 50, 0),
        ([-1, -1, -1, -1, -1, -1], 200 / 3, 0),
    ],
)
def test_objects_of_two_networks_are_compared_in_both_directions(row, agreement, difference):
    other, rows = [30, 30, 60, 60, 0.5, 0], torch.full((2, 1, 3, 6), -1.0)
    rows[0, 0, :2] = torch.tensor([[4, 8, 20, 30, 0.9, 1], other])
    rows[1, 0, 1:] = torch.tensor([row, other])
    same = compare_objects(lambda images: rows[0], lambda images: rows[1], torch.zeros(1, 3, 64, 64))
    assert same == pytest.approx((1, difference, agreement), abs=1e-6)


def test_a_detector_that_finds_nothing_cannot_be_compared():
    nothing = torch.full((1, 3, 6), -1.0)
    with pytest.raises(ConfigError, match="no object to compare in noise: --images names pictures"):
        compare_objects(lambda images: nothing, lambda images: nothing, torch.zeros(2, 3, 8, 8))


class Drawn(nn.Module):
    """A network that never answers the same twice."""

    def forward(self, images):
        return images.float().mean((2, 3)) + torch.rand(3)


def test_what_is_not_equal_is_not_kept(tmp_path):
    with pytest.raises(RecombineError, match="is not written: its logits differ"):
        export_network(Drawn(), tmp_path / "drawn.pt2", 8, {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["out.pth"], r"cannot export to out.pth: names that end in .pt2, .onnx are needed"),
        (["--patch", "a=PATCH", "--patch", "b=PATCH", "out.pt2"], "--task: an exported network has one task"),
        (["--patch", "PATCH", "--task", "five", "out.pt2"], "--task five: one of base, four is needed"),
    ],
)
def test_mistakes(tmp_path, monkeypatch, words, told):
    base = network("resnet8")
    models.save(base, tmp_path / "base.safetensors", {})
    patched = TaskNetwork(base, Delta(traced(base), 4, modules=1)).eval()
    patch.save(patched, tmp_path / "p.safetensors", name="four", class_names=list("wxyz"), tasks=[], metrics={})
    words = [word.replace("PATCH", str(tmp_path / "p.safetensors")) for word in words]
    with pytest.raises(ConfigError, match=told):
        run(monkeypatch, "--model", tmp_path / "base.safetensors", *words)


def test_a_model_card_and_what_the_hub_would_get(tmp_path, monkeypatch, capsys):
    models.save(network("resnet8"), tmp_path / "things.safetensors", {"class_names": NAMES})
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    taken = {}

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        taken[repo_id] = {file.name: file.read_bytes() for file in Path(folder_path).iterdir()}

    monkeypatch.setattr(HfApi, "create_repo", lambda self, name, **_: RepoUrl(f"https://huggingface.co/{name}"))
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    words = ["--model", tmp_path / "things.safetensors", tmp_path / "things.pt2", "--model-card", tmp_path / "card.md"]
    run(monkeypatch, *words, "--push-to-hub", "me/things")
    assert "https://huggingface.co/me/things" in capsys.readouterr().out
    (files,) = taken.values()
    assert files.keys() == {"things.pt2", "things.labels.json", "things.safetensors", "README.md"}
    assert files["things.pt2"] == (tmp_path / "things.pt2").read_bytes()
    card = files["README.md"].decode()
    assert (
        card == (tmp_path / "card.md").read_text() and yaml.safe_load(card.split("---")[1])["library_name"] == "pytorch"
    )
    assert "a, b, c" in card and "3 classes" in card and "`things.pt2` | 20 images" in card


def test_the_hub_that_says_no_is_one_message(tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match=r"me/things: no token of the hub is here; `hf auth login` stores one"):
        push("me/things", [], "")
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    with pytest.raises(RecombineError, match="--push-to-hub me/things: "):  # tests have no network
        push("me/things", [], "")
    with pytest.raises(ConfigError, match="<owner>/<name> is needed"):
        push("me//things", [], "")
