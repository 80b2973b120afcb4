"""main_pretrain.py from a composed config to its row and its checkpoint, on handwritten digits."""

import json
import logging
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from sklearn.metrics import accuracy_score, log_loss

from recombine import data as datasets
from recombine import models as zoo
from recombine.core.results import read_rows
from recombine.engine.method import Supervised
from recombine.models.model import find_head
from recombine.pretrain import recipe
from recombine.run.launch import check, launch
from tests.composing import composed

CONFIG = str(Path(__file__).parents[2] / "config")
SMALL = [
    "model.widths=[8,8,16,16]",
    "engine.epochs=2",
    "loader=torch",
    "loader.workers=0",
    "logger=none",
    "device=cpu",
    "optimizer.lr=0.05",
]


def compose_config(folder, *overrides):
    roots = [f"{root}_root={folder / root}" for root in ("data", "weights", "cache", "output")]
    return composed("pretrain", *roots, *SMALL, *overrides)


def rows_in(folder):
    return read_rows(folder / "output")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """One short training: its folder, its row and the checkpoint."""
    folder = tmp_path_factory.mktemp("pretrain")
    progress, shown = logging.getLogger("recombine.engine.logging"), logging.FileHandler(folder / "shown")
    progress.addHandler(shown)
    progress.setLevel(logging.INFO)
    launch(recipe, compose_config(folder))
    progress.removeHandler(shown)
    progress.setLevel(logging.NOTSET)
    shown.close()
    (row,) = rows_in(folder)
    return folder, row, folder / "weights" / "cnn-digits-s0.safetensors"


def test_charts_and_the_terminal_say_which_images_were_evaluated(trained):
    folder, row, _ = trained
    shown = (folder / "shown").read_text(encoding="utf-8")
    assert "test accuracy" in shown and "val accuracy" not in shown
    lines = (folder / "output" / "pretrain" / row.run / "metrics.jsonl").read_text().splitlines()
    names = {name for line in lines for name in json.loads(line)}
    assert "test/accuracy" in names and not [name for name in names if name.startswith("val/")]


def test_row_equals_scikit_learn_on_the_kept_network(trained):
    folder, row, path = trained
    cfg = compose_config(folder)
    model = zoo.build(path.stem, weights_root=path.parent)
    data = datasets.open_data(cfg.dataset, loader=cfg.loader, data_root="", cache_root=folder, seed=0, device="cpu")
    images, labels, *_ = zip(*data.loader("test", 50, train=False).epoch(0), strict=True)
    data.close()
    with torch.no_grad():
        logits, labels = model(torch.cat(images)), torch.cat(labels)
    assert row.metrics["accuracy"] == pytest.approx(100 * accuracy_score(labels, logits.argmax(1)))
    assert row.metrics["loss"] == pytest.approx(log_loss(labels, logits.double().softmax(1)), rel=1e-5)
    assert row.metrics["accuracy"] > 50, "two epochs teach digits to a small network"
    assert row.metrics["parameters"] == sum(p.numel() for p in model.parameters())
    assert row.cell == {"model": "cnn", "dataset": "digits", "fraction": 1.0, "start": "random", "trained": "all"}


def test_curves_have_a_point_for_each_epoch(trained):
    _, row, _ = trained
    assert row.series["epoch"] == [1, 2]
    assert row.series["train_loss"][1] < row.series["train_loss"][0]
    assert row.series["accuracy"][-1] == row.metrics["accuracy"]


def test_checkpoint_says_what_it_is(trained):
    _, row, path = trained
    model = zoo.build(str(path))
    assert (model.name, model.classes, model.claimed_accuracy) == (path.stem, 10, row.metrics["accuracy"])
    with safe_open(path, "pt") as file:
        card = json.loads(file.metadata()["card"])
    assert card["dataset"] == "digits" and card["config"]["engine"]["epochs"] == 2


def test_a_lost_checkpoint_is_written_again_without_training(trained, monkeypatch, capsys):
    folder, row, path = trained
    launch(recipe, compose_config(folder))
    assert "finished before" in capsys.readouterr().out
    before = load_file(path)
    path.unlink()
    monkeypatch.setattr(Supervised, "forward", None)
    launch(recipe, compose_config(folder))
    after = load_file(path)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert row.metrics in [found.metrics for found in rows_in(folder)]


def test_same_seed_same_weights_and_another_seed_others(trained, tmp_path):
    _, _, path = trained
    launch(recipe, compose_config(tmp_path))
    launch(recipe, compose_config(tmp_path, "seed=1"))
    again, other = (load_file(tmp_path / "weights" / f"cnn-digits-s{seed}.safetensors") for seed in (0, 1))
    first = load_file(path)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert path.read_bytes() == (tmp_path / "weights" / path.name).read_bytes(), "its card names no folder"
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_every_loader_trains_the_same_network(tmp_path):
    kept = []
    for loader in ("torch", "ffcv", "device"):
        launch(
            recipe,
            compose_config(tmp_path, f"loader={loader}", f"save_as={loader}", "engine.max_steps=8", "batch_size=32"),
        )
        kept.append(load_file(tmp_path / "weights" / f"{loader}.safetensors"))
    first, *others = kept
    assert all(torch.equal(first[name], other[name]) for other in others for name in first)
    losses = {row.metrics["loss"] for row in rows_in(tmp_path)}
    assert len(rows_in(tmp_path)) == 3 and len(losses) == 1


def test_linear_probe_changes_the_classifier_alone(trained):
    folder, _, path = trained
    probe = [
        "freeze=true",
        f"model.weights={path}",
        "save_as=probe",
        "dataset.class_subset=[0,1,2]",
        "optimizer.lr=0.2",
        "engine.epochs=12",
    ]
    launch(recipe, compose_config(folder, *probe))
    before, after = load_file(path), load_file(folder / "weights" / "probe.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    head = find_head(zoo.build("probe", weights_root=folder / "weights").net, 3)
    assert changed == {f"{head}.weight", f"{head}.bias"}
    (found,) = [r for r in rows_in(folder) if r.cell["trained"] == "classifier"]
    assert found.cell["start"] == "pretrained"
    assert found.metrics["trainable"] == after[f"{head}.weight"].numel() + 3
    assert found.metrics["accuracy"] > 90, "three digits are told apart by features that know ten"


@pytest.mark.parametrize(
    "name", ["resnet8", "lenet5", "timm:resnet10t", "timm:vit_tiny_patch16_224", "torchvision:squeezenet1_1"]
)
def test_any_architecture_can_be_frozen(name):
    model = zoo.build({"name": name, "weights": None}, classes=7)
    method = Supervised(model)
    recipe.freeze_backbone(method, model)
    method.train()
    head = model.net.get_submodule(find_head(model.net, 7))
    trainable = {id(p) for p in method.parameters() if p.requires_grad}
    assert trainable == {id(p) for p in head.parameters()}
    normalisations = [m for m in model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    assert not any(m.training for m in normalisations)


@pytest.mark.parametrize(("scaling", "expected"), [("none", 0.2), ("linear", 0.05), ("linear_twice", 0.0125)])
def test_learning_rate_is_scaled_as_configured(tmp_path, scaling, expected):
    cfg = compose_config(tmp_path, "optimizer.lr=0.2", "batch_size=64", f"lr_scaling={scaling}")
    assert recipe.learning_rate(cfg) == pytest.approx(expected)


def test_problems_are_found_together(tmp_path):
    problems = check(recipe, compose_config(tmp_path, "lr_scaling=cubic", "freeze=true", "loader.kind=tape"))
    text = "\n".join(problems)
    assert all(word in text for word in ("lr_scaling=cubic", "none, linear, linear_twice", "freeze=false", "tape"))
    assert check(recipe, compose_config(tmp_path)) == []


def test_names_of_library_networks_make_file_names(tmp_path):
    cfg = compose_config(tmp_path, "model.name=hf-hub:timm/resnet18.a1_in1k", "seed=3")
    assert recipe.save_name(cfg) == "resnet18.a1_in1k-digits-s3"
    assert recipe.save_name(compose_config(tmp_path, "save_as=mine")) == "mine"
    assert recipe.save_name(compose_config(tmp_path, "engine=debug")) == "cnn-digits-s0-2-steps"
