"""The guided command: how it splits, how it chooses, what it leaves."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import recombine
from recombine import models
from recombine.cli import improve
from recombine.core.errors import ConfigError
from recombine.core.paired import compare_paired
from recombine.core.results import read_rows
from recombine.data.storage import decode
from recombine.improve.bundle import Result, write_bundle, write_report
from recombine.improve.evaluation import Evaluation
from recombine.improve.folder import split_folder
from recombine.improve.names import short_name, zoo_networks
from recombine.improve.rows import result_rows
from recombine.improve.search import best_of, choose_over, successive_halving
from recombine.improve.trials import Outcome, Trial, choose_patch, list_trials
from tests.networks import shaken

COLOURS = {"blue": (40, 60, 200), "red": (200, 50, 40)}


def draw_images(folder, count):
    """Images of each of two colours; the first two of a class are the same picture."""
    random = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for k in range(count):
            if k != 1:
                pixels = np.clip(random.normal(colour, 25, (40, 56, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{k:02}.png")
    return folder


@pytest.fixture
def images(tmp_path):
    """Twelve images of each class."""
    return draw_images(tmp_path / "things", 12)


def names(folder):
    return {f"{path.parent.name}/{path.name}" for path in folder.rglob("*.png")}


def test_every_image_is_in_one_part_and_copies_stay_together(images, tmp_path):
    split = split_folder(images, tmp_path / "a")
    again = split_folder(images, tmp_path / "b")
    parts = [split.choose / "train", split.choose / "test", split.final / "test"]
    held = [names(part) for part in parts]
    assert set.union(*held) == names(images)
    assert sum(map(len, held)) == 24 == sum(split.counts.values())
    for name in COLOURS:
        assert sum({f"{name}/00.png", f"{name}/01.png"} <= part for part in held) == 1
        assert all(any(file.startswith(name) for file in part) for part in held)
    assert held == [names(part) for part in (again.choose / "train", again.choose / "test", again.final / "test")]
    assert names(split.final / "train") == held[0]


def test_splits_of_ones_own_are_taken_as_they_are(images, tmp_path):
    for part, files in {"train": range(8), "val": range(8, 10), "test": range(10, 12)}.items():
        for name in COLOURS:
            (tmp_path / "own" / part / name).mkdir(parents=True)
            for k in files:
                (images / name / f"{k:02}.png").rename(tmp_path / "own" / part / name / f"{k:02}.png")
    split = split_folder(tmp_path / "own", tmp_path / "work")
    assert split.counts == {"train": 16, "val": 4, "test": 4}
    assert names(split.choose / "test") == names(tmp_path / "own" / "val")
    assert names(split.final / "test") == names(tmp_path / "own" / "test")


def test_too_few_images_are_told(images, tmp_path):
    for k in range(2, 12):
        (images / "red" / f"{k:02}.png").unlink()
    with pytest.raises(ConfigError, match="class red has 1 different images to train on; at least 3"):
        split_folder(images, tmp_path / "work")
    with pytest.raises(ConfigError, match="at least two folders of images are needed"):
        split_folder(images / "red", tmp_path / "work")


def outcome(name, method, right, epochs=None, seconds=1.0):
    correct = None if right is None else np.arange(100) < right
    return Outcome(name, method, name, epochs, seconds, None, correct)


def test_the_better_half_trains_longer_and_fine_tuning_always_does():
    accuracy = {"finetune": 10, "transfer": 50, "patch": 70, "stitch": 40, "other": None}
    trials = [Trial(name, name, "", (), "", trains=name != "stitch") for name in accuracy]
    done = []

    def run(trial, epochs, left):
        done.append((trial.name, epochs))
        return outcome(trial.name, trial.method, accuracy[trial.name], epochs)

    found = successive_halving(trials, 1e6, run, lambda *_: None)
    assert [d for d in done if d[1] == 3] == [(name, 3) for name in accuracy]
    assert [d for d in done if d[1] == 9] == [("patch", 9), ("transfer", 9), ("finetune", 9)]
    assert [d for d in done if d[1] == 27] == [("patch", 27), ("transfer", 27), ("finetune", 27)]
    assert best_of(found).name == "patch" and best_of(found).epochs == 3  # the shortest of equals
    assert best_of(found, ["finetune"]).name == "finetune"


def test_what_would_not_end_in_time_is_not_begun():
    trials = [Trial("quick", "patch", "", (), ""), Trial("slow", "finetune", "", (), "")]
    done = []

    def run(trial, epochs, left):
        done.append((trial.name, epochs))
        return outcome(trial.name, trial.method, 50, epochs, seconds=400 if trial.name == "slow" else 1)

    successive_halving(trials, 1000, run, lambda *_: None)
    assert ("slow", 9) not in done and ("quick", 9) in done


def test_the_original_is_kept_where_nothing_is_better_for_sure():
    original = outcome("original", "original", 90)
    assert choose_over(original, [outcome("a", "patch", 95), outcome("b", "patch", None)]) is original  # p = 1 / 16
    better = outcome("c", "transfer", 97)  # seven of seven images: p = 1 / 64
    assert choose_over(original, [outcome("a", "patch", 95), better]) is better
    assert choose_over(original, [outcome(f"{k}", "patch", 95) for k in range(9)] + [better]) is original  # one of ten
    better.measured = 10  # the best of ten files of one trial
    assert choose_over(original, [better]) is original
    assert choose_over(original, []) is original
    assert best_of([original, outcome("a", "transfer", 90), outcome("b", "patch", 89)]) is original


def test_networks_are_fitted_to_training_images_and_measured_on_validation_images(images, tmp_path, monkeypatch):
    for part, files in {"train": range(7), "val": range(7, 9), "test": range(9, 12)}.items():
        for name in COLOURS:
            (tmp_path / "own" / part / name).mkdir(parents=True)
            for k in files:
                (images / name / f"{k:02}.png").rename(tmp_path / "own" / part / name / f"{k:02}.png")
    evaluation = Evaluation(split_folder(tmp_path / "own", tmp_path / "work" / "data"), tmp_path / "work")
    node = {"name": "resnet8", "weights": None, "size": 32}
    models.save(shaken(models.build(node, classes=7)), tmp_path / "seven.safetensors", {})
    seen = []
    monkeypatch.setattr("recombine.improve.evaluation.fit_heads", lambda model, loader: seen.append(loader) or model)
    model = evaluation.prepare(str(tmp_path / "seven.safetensors"), "", "start")
    assert len(evaluation.measure(model)) == 4 and len(evaluation.measure(model, final=True)) == 6
    assert seen[0].samples == 14
    evaluation.close()


def halves(folder, count):
    """Images of two classes that parts or mirror images tell nothing of: which of two halves is bright."""
    random = np.random.default_rng(0)
    for name, bright in (("left", slice(0, 28)), ("right", slice(28, 56))):
        (folder / name).mkdir(parents=True)
        for k in range(count):
            pixels = random.normal(60, 10, (40, 56, 3))
            pixels[:, bright] += 120
            Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / name / f"{k:02}.png")
    return folder


class TellHalves(torch.nn.Module):
    """Logits: mean of the left half, mean of the right half."""

    def forward(self, x):
        return torch.stack([half.mean((1, 2, 3)) for half in x.chunk(2, dim=3)], 1)


class TellColours(torch.nn.Module):
    """Logits: mean blue, mean red."""

    def forward(self, x):
        return x.mean((2, 3))[:, [2, 0]]


@pytest.mark.parametrize(
    ("draw", "network", "augment"), [(halves, TellHalves(), "none"), (draw_images, TellColours(), "crop_resize")]
)
def test_images_are_cut_and_mirrored_where_the_network_knows_them_then(tmp_path, draw, network, augment):
    folder = draw(tmp_path / "things", 12)
    evaluation = Evaluation(split_folder(folder, tmp_path / "work" / "data"), tmp_path / "work")
    model = models.build({"name": "resnet8", "weights": None, "size": 32}, classes=2)
    model.net = network
    assert evaluation.measure(model).all()
    chosen, known = evaluation.choose_augment(model)
    evaluation.close()
    assert chosen == augment and (known < 75) == (augment == "none")
    trained = [t for t in list_trials(["other"], 8, augment=chosen) if t.method in ("finetune", "transfer")]
    assert len(trained) == 3 and all(f"dataset.augment={augment}" in t.overrides for t in trained)


def test_the_bundle_says_the_same_as_the_network(images, tmp_path):
    evaluation = Evaluation(split_folder(images, tmp_path / "work" / "data"), tmp_path / "work")
    node = {"name": "resnet8", "weights": None, "size": 32, "mean": [0.4] * 3, "std": [0.3] * 3, "crop_pct": 0.9}
    model = shaken(models.build({**node, "interpolation": "bicubic"}, classes=2))
    file = models.save(model, tmp_path / "work" / "weights" / "start.safetensors", {})
    chosen = Outcome("original", "original", "", None, 1.0, file, evaluation.measure(model))
    forms = write_bundle(tmp_path / "out", chosen, evaluation)
    assert all(form.agreement == 100 for form in forms.values())
    result = Result([chosen], chosen, None, {"the original": chosen.correct, "the chosen network": chosen.correct})
    write_report(
        tmp_path / "out" / "report.md", {"network": "n", "images": "i", "command": "c", "work": "my w"}, result, forms
    )
    assert "the 2 validation images: the original is kept" in (tmp_path / "out" / "report.md").read_text()
    assert "cd 'my w'" in (tmp_path / "out" / "report.md").read_text()
    paths = sorted(images.rglob("*.png"))[:6]
    words = [sys.executable, str(tmp_path / "out" / "load.py"), *map(str, paths)]
    told = subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()
    loaded = recombine.load(tmp_path / "out" / "model.safetensors")
    pixels = [torch.from_numpy(decode(path.read_bytes(), str(path))).permute(2, 0, 1)[None] for path in paths]
    with torch.no_grad():
        expected = torch.cat([loaded(loaded.preprocess.fit(each)) for each in pixels]).softmax(1)
    best = [json.loads((tmp_path / "out" / "labels.json").read_text())[k] for k in expected.argmax(1)]
    assert [line.split("\t")[1] for line in told] == best
    # resizing rounds to whole grey levels, in other kernels on other processors
    assert [float(line.split("\t")[2]) for line in told] == pytest.approx(expected.max(1).values.tolist(), abs=2e-3)


@pytest.mark.parametrize(("name", "patch"), [("resnet8", "delta"), ("cnn", "lora")])
def test_a_network_without_blocks_gets_a_patch_that_needs_none(name, patch):
    model = models.build({"name": name, "weights": None, "size": 32}, classes=3)
    assert choose_patch(model) == patch
    (trial,) = [trial for trial in list_trials([], 8, patch) if trial.method == "patch"]
    assert f"method={patch}" in trial.overrides


def test_rows_hold_what_was_tried_and_what_it_gained():
    tried = [outcome("a", "finetune", 50, 3), outcome("b", "transfer", 60, 9), outcome("c", "patch", None, 3)]
    tested = {"the original": np.arange(100) < 40, "fine-tuning alone": np.arange(100) < 50}
    tested |= {"the chosen network": np.arange(100) < 65}
    test, *val = result_rows(Result(tried, tried[1], tried[0], tested), "net", "things", {"command": "x"})
    assert test.cell == {"dataset": "things", "network": "net", "split": "test", "chosen": "b"}
    found = compare_paired(tested["the chosen network"], tested["fine-tuning alone"])
    assert test.metrics["gain_over_finetune"] == found.difference == 15
    assert test.metrics["gain_over_finetune_low"] == found.low > 0 and test.metrics["gain_over_original"] == 25
    assert [row.metrics.get("accuracy_val") for row in val] == [50, 60, None]
    assert [row.cell["epochs"] for row in val] == [3, 9, 3] and val[0].metrics["gain_over_finetune"] == 0
    assert "gain_over_finetune_low" not in val[0].metrics and "gain_over_finetune_low" in val[1].metrics


def test_names_of_networks(tmp_path):
    for name in ("a.safetensors", "b.pth", "notes.txt"):
        (tmp_path / name).touch()
    given = [str(tmp_path), "timm:resnet18.a1_in1k", "a"]
    assert [short_name(text) for text in zoo_networks(given, "a")] == ["b", "resnet18_a1_in1k"]


@pytest.mark.parametrize("budget", ["10", "soon", "-3m", "5d", "0s"])
def test_a_budget_that_is_no_time(budget):
    with pytest.raises(ConfigError, match=f"--budget {budget}: a time is needed, such as 90s, 30m or 2h"):
        improve.parse_seconds(budget)


@pytest.mark.slow
def test_the_whole_command_on_a_folder(tmp_path, monkeypatch, capsys):
    images = draw_images(tmp_path / "things", 36)
    for seed, name in enumerate(("start", "teacher")):
        node = {"name": "resnet8", "weights": None, "size": 32}
        models.save(models.build(node, classes=7, seed=seed), tmp_path / "zoo" / f"{name}.safetensors", {})
    words = ["--images", images, "--network", tmp_path / "zoo" / "start.safetensors", "--zoo", tmp_path / "zoo"]
    words += ["--out", tmp_path / "out", "--budget", "10m", "--batch-size", "500"]  # more than there are
    monkeypatch.setattr("sys.argv", ["improve", *map(str, words)])
    monkeypatch.setattr("recombine.improve.search.EPOCHS", (1, 2))
    improve.main()
    told, report = capsys.readouterr().out, (tmp_path / "out" / "report.md").read_text()
    assert "chosen: " in told and "no result" not in told
    assert len(read_rows(tmp_path / "out" / "row.json")) >= 6
    for name in ("fine-tune", "delta patch", "transfer from teacher", "stitch with teacher"):
        assert name in report
    assert json.loads((tmp_path / "out" / "labels.json").read_text()) == ["blue", "red"]
