"""recombine predict as a user starts it: image files in, classes of base and patches out."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from recombine import models, patch
from recombine.cli import classify, networks, predict
from recombine.core.errors import ConfigError
from recombine.models.graph import traced
from recombine.patch.delta import Delta
from recombine.patch.patched import TaskNetwork
from tests import forked

SCRIPT = Path(__file__).parents[2] / "scripts" / "predict.py"


def started(*arguments):
    return forked.run("predict", *map(str, arguments), cwd=Path.cwd())


@pytest.fixture
def folder(tmp_path, resnet8, images):
    """A base, two patches of it, and a folder with two images and a note."""
    models.save(resnet8, tmp_path / "base.safetensors", {})
    for seed, name in enumerate(("letters", "base")):
        torch.manual_seed(seed)
        patched = TaskNetwork(resnet8, Delta(traced(resnet8), 3, modules=1)).eval()
        info = {"tasks": ["abc"], "metrics": {"accuracy_abc": 97.5}}
        patch.save(patched, tmp_path / f"{name}-patch.safetensors", name=name, class_names=["a", "b", "c"], **info)
        patched.restore()
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "note.txt").write_text("no image")
    for k in range(2):
        Image.fromarray(images[k].permute(1, 2, 0).numpy()).save(tmp_path / "images" / f"{k}.png")
    return tmp_path


def test_the_documented_order_on_a_folder(folder, resnet8, images):
    base, letters = folder / "base.safetensors", folder / "letters-patch.safetensors"
    done = started("--model", base, "--json", "--patch", letters, folder / "images")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    network = patch.attach(resnet8, letters)
    with torch.no_grad():
        classes = network(images[:2]).argmax(1).tolist()
        task = network(images[:2], "letters").argmax(1).tolist()
    expected = [each for k in range(2) for each in (("base", str(classes[k])), ("letters", "abc"[task[k]]))]
    assert [(line["task"], line["class"]) for line in lines] == expected


def run(monkeypatch, capsys, *arguments):
    """The script in this process: its output."""
    monkeypatch.setattr(sys, "argv", ["predict.py", *map(str, arguments)])
    predict.main()
    return capsys.readouterr().out


def test_two_patches_the_best_classes_and_the_most_confident_expert(folder, monkeypatch, capsys):
    common = ["--model", folder / "base.safetensors", "--patch", folder / "letters-patch.safetensors"]
    common += ["--patch", f"other={folder / 'base-patch.safetensors'}", "--top", "2", folder / "images"]
    lines = [json.loads(line) for line in run(monkeypatch, capsys, *common, "--json").splitlines()]
    assert [line["task"] for line in lines[:6]] == ["base", "base", "letters", "letters", "other", "other"]
    assert all(a["probability"] >= b["probability"] for a, b in zip(lines[::2], lines[1::2], strict=True))
    auto = [json.loads(line) for line in run(monkeypatch, capsys, *common, "--json", "--task", "auto").splitlines()]
    assert auto[::2] == [max(lines[k : k + 6], key=lambda line: line["probability"]) for k in (0, 6)]
    assert "letters: 97.50 % right on the test images of abc" in run(monkeypatch, capsys, *common)


def test_small_batches_predict_the_same(folder, monkeypatch, capsys):
    common = ["--model", folder / "base.safetensors", folder / "images", "--json"]
    whole = run(monkeypatch, capsys, *common)
    monkeypatch.setattr(classify, "BATCH", 1)
    assert [json.loads(line)["class"] for line in run(monkeypatch, capsys, *common).splitlines()] == [
        json.loads(line)["class"] for line in whole.splitlines()
    ]


WRONG = [
    ("--task numbers images", "--task numbers: one of auto, base, letters is needed"),
    ("--patch {base-patch.safetensors} images", "'base' means something else; give .* another name: --patch another="),
    ("--patch {letters-patch.safetensors} images", "'letters' is attached already; give .*: --patch another="),
    ("--classes {none.json} images", "none.json cannot be read as JSON"),
    ("--classes {short.json} images", "short.json holds 2 names; a list of the 10 names of the base is needed"),
    ("--top 0 images", "--top 0: a number of classes"),
    ("--device gpu images", "--device gpu: one of auto, cpu"),
    ("nowhere", "no such image: .*nowhere"),
    ("empty", "empty holds no image"),
    ("letters-patch.safetensors", "these are patches and no images: --patch .*letters-patch.safetensors"),
]


@pytest.mark.parametrize(("words", "message"), WRONG)
def test_mistakes_are_one_sentence(folder, monkeypatch, capsys, words, message):
    (folder / "short.json").write_text('["a", "b"]')
    (folder / "empty").mkdir()
    *options, image = re.sub(r"{(.*?)}", lambda found: str(folder / found[1]), words).split()
    common = ["--model", folder / "base.safetensors", "--patch", folder / "letters-patch.safetensors"]
    with pytest.raises(ConfigError, match=message):
        run(monkeypatch, capsys, *common, *options, folder / image)


def test_a_base_of_imagenet_has_names(resnet8, network):
    assert networks.read_class_names(None, resnet8) == [str(k) for k in range(10)]
    assert networks.read_class_names(None, network("resnet8", classes=1000))[207] == "golden retriever"
