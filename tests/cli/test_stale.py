"""A finished run whose data or weights have changed since is not finished: it says what changed and starts anew."""

import numpy as np
import pytest
from hydra import compose
from PIL import Image

from recombine import models
from recombine.cli.search_path import initialize_entry
from recombine.core.errors import ConfigError
from recombine.core.results import read_rows
from recombine.pretrain import recipe
from recombine.run.launch import launch


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


def run(place, *overrides):
    roots = [f"{key}_root={place / key}" for key in ("data", "weights", "cache", "output")]
    options = ["dataset=folder", "dataset.name=mine", "dataset.folder=mine", "model=any", "model.name=start"]
    quick = ["batch_size=8", "engine.epochs=1", "loader=torch", "loader.workers=0", "logger=none", "device=cpu"]
    with initialize_entry("pretrain"):
        cfg = compose("pretrain/pretrain", [*roots, *options, *quick, "save_as=out", *overrides])
    launch(recipe, cfg)
    (row,) = read_rows(place / "output")
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


def test_a_training_is_not_continued_with_other_inputs(place, capsys):
    with pytest.raises(ConfigError):
        run(place, "engine.save_every_steps=1", "dataset.test_fraction=0.01")  # fails after it has begun
    network(place, 1)
    with pytest.raises(ConfigError, match="made of other inputs"):
        run(place, "engine.save_every_steps=1", "dataset.test_fraction=0.01", "engine.resume=must")
