"""A finished run whose data or weights have changed since is not finished: it says what changed and starts anew."""

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from recombine import models
from recombine.cli import predict
from recombine.core.errors import ConfigError
from recombine.core.results import read_rows
from recombine.pretrain import recipe
from recombine.run.launch import launch
from tests.composing import composed


@pytest.fixture
def place(tmp_path):
    """Pictures of two classes, and a network that was trained before."""
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for label, name in enumerate(("dark", "light")):
            (tmp_path / "data" / "mine" / split / name).mkdir(parents=True)
            for k in range(8):
                pixels = rng.integers(120 * label, 120 + 120 * label, (16, 16, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(tmp_path / "data" / "mine" / split / name / f"{k}.png")
    network(tmp_path, 0)
    return tmp_path


def network(place, seed):
    node = {"name": "cnn", "architecture": "cnn", "weights": None, "size": 16, "mean": 0.5, "std": 0.25}
    models.save(models.build(node, classes=2, seed=seed), place / "weights" / "start.safetensors", {})


def run(place, *overrides, output="output"):
    roots = [f"{key}_root={place / key}" for key in ("data", "weights", "cache")] + [f"output_root={place / output}"]
    options = ["dataset=folder", "dataset.name=mine", "dataset.folder=mine", "model=any", "model.name=start"]
    quick = ["batch_size=8", "engine.epochs=1", "loader=torch", "loader.workers=0", "logger=none", "device=cpu"]
    launch(recipe, composed("pretrain", *roots, *options, *quick, "save_as=out", *overrides))
    (row,) = read_rows(place / output)
    return row


def test_a_finished_run_is_as_old_as_its_inputs(place, capsys):
    first = run(place)
    assert {key.split()[0] for key in first.provenance["inputs"]} == {"data", "weights"}
    capsys.readouterr()
    assert run(place).provenance == first.provenance and "finished before" in capsys.readouterr().out

    picture = place / "data" / "mine" / "test" / "dark" / "0.png"
    Image.fromarray(np.full((16, 16, 3), 250, np.uint8)).save(picture)
    second = run(place)
    told = capsys.readouterr().out
    assert "starts anew" in told and "data mine/test has changed" in told and "mine/train" not in told
    assert second.metrics["accuracy"] != first.metrics["accuracy"]
    assert (next((place / "output" / "pretrain").iterdir()) / "previous" / "row.json").is_file()

    network(place, 1)
    third = run(place)
    assert "weights $weights_root/start.safetensors has changed" in capsys.readouterr().out
    assert third.provenance["inputs"] != second.provenance["inputs"]


def test_a_training_is_not_continued_with_other_inputs(place, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as broken, pytest.raises(KeyboardInterrupt):
        broken.setattr("recombine.pretrain.recipe.save_network", stop)
        run(place, "engine.save_every_steps=1")
    network(place, 1)
    with pytest.raises(ConfigError, match="made of other inputs"):
        run(place, "engine.save_every_steps=1", "engine.resume=must")


def test_a_command_that_its_data_refuse_leaves_nothing(place):
    with pytest.raises(ConfigError, match=r"dataset.test_fraction=0.01 of \d+ samples cannot be stratified") as refused:
        run(place, "dataset.test_fraction=0.01")
    assert not refused.value.started and not (place / "output").exists()


def test_networks_of_two_folders_never_share_a_file(place, tmp_path_factory, monkeypatch, capsys):
    """Two folders of one name in two places: their networks, in the run's folder and by name, with class names."""
    first = run(place, "save_as=null")
    path = Path(first.provenance["files"][0])
    assert re.fullmatch(r"start-mine-[0-9a-f]{8}-s0.safetensors", path.name)
    assert first.cell["dataset"] in path.name and str(path) in capsys.readouterr().out
    folder = place / "output" / "pretrain" / first.run
    assert (folder / "network.safetensors").read_bytes() == path.read_bytes()
    assert json.loads((folder / "labels.json").read_text()) == ["dark", "light"]
    monkeypatch.setattr(sys, "argv", ["predict", "--model", str(path), "--json", str(place / "data/mine/test/light")])
    predict.main()
    assert {json.loads(line)["class"] for line in capsys.readouterr().out.splitlines()} <= {"dark", "light"}

    other, before = tmp_path_factory.mktemp("other"), path.read_bytes()
    shutil.copytree(place / "data", other / "data")
    (other / "data/mine/train/light").rename(other / "data/mine/train/pale")
    (other / "data/mine/test/light").rename(other / "data/mine/test/pale")
    elsewhere = f"data_root={other / 'data'}"
    run(place, output="second")
    with pytest.raises(ConfigError, match=r"save_as=out: .*out.safetensors is of other data \(mine-"):
        run(place, elsewhere, output="third")
    run(place, "save_as=null", elsewhere, output="fourth")
    assert path.read_bytes() == before
    assert len(list((place / "weights").glob("start-mine-*-s0.safetensors"))) == 2


def test_a_part_of_a_data_set_does_not_replace_the_whole(place):
    """Other settings of one set are other data too."""
    whole = Path(run(place, "save_as=null").provenance["files"][0])
    before = whole.read_bytes()
    run(place, "save_as=null", "dataset.fraction=0.5", output="second")
    names = sorted(path.name for path in (place / "weights").glob("start-mine-*"))
    assert len(names) == 2 and whole.read_bytes() == before
