"""Choices are made on validation images; test images are read once, when all training is over."""

import pytest
import torch
from digits import compose_config, open_digits, run_rows

from recombine import models as zoo
from recombine.core.errors import ConfigError
from recombine.data import Data
from recombine.engine.engine import Engine
from recombine.run.launch import launch
from recombine.transfer import multi_teacher, recipe
from recombine.transfer.composed import ComposedDistillation

TEACHERS = "teachers=[wide,letters]"


@pytest.fixture
def favour(folder, monkeypatch):
    """Make a network right on every image of a split."""

    def change(split, name):
        data = open_digits(folder)
        stored = "train" if split == "val" else split
        images = torch.from_numpy(data.split(stored).pixels).permute(0, 3, 1, 2)
        data.close()
        with torch.no_grad():
            predicted = zoo.build(name, weights_root=folder / "weights")(images).argmax(1).numpy()
        original = Data._labels
        monkeypatch.setattr(Data, "_labels", lambda self, s: predicted if s == split else original(self, s))

    return change


def choose(folder, place):
    """The ranking of two candidates, the order of two stages, and a teacher's accuracy on the test images."""
    where = [f"output_root={place}", f"cache_root={place}"]
    ranking = run_rows(recipe, compose_config(folder, "candidates=[letters,wide]", *where))
    config = {"config": "multi_teacher/multi_teacher"}
    stages = run_rows(
        multi_teacher, compose_config(folder, TEACHERS, "engine.epochs=1", "engine.max_steps=1", *where, **config)
    )
    logged = [row.series["accuracy_after"] for row in stages]
    accuracies = [row.metrics["accuracy_teacher"] for row in stages]
    return [row.cell["teacher"] for row in ranking], accuracies[0] < accuracies[1], logged, accuracies


def test_test_images_decide_nothing_and_validation_images_all(folder, tmp_path, favour):
    """Swapping the labels of the one split or the other: a choice by test images would change with them."""
    order, ascending, curves, accuracies = choose(folder, tmp_path / "as they are")
    assert order == ["wide", "letters"] and ascending
    favour("test", "letters")
    changed = choose(folder, tmp_path / "test")
    assert max(changed[3]) == 100 and changed[3] != accuracies, "the test images were swapped"
    assert changed[0] == order and changed[2] == curves, "nothing was chosen or drawn by them"
    assert not changed[1], "the same order, in which the teacher comes first that they now favour"


def test_validation_images_decide(folder, tmp_path, favour):
    favour("val", "letters")
    order, ascending, _, _ = choose(folder, tmp_path)
    assert order == ["letters", "wide"] and not ascending


@pytest.mark.parametrize(("split", "differ"), [("test", False), ("val", True)])
def test_temperatures_are_those_of_validation_images(folder, tmp_path, favour, monkeypatch, split, differ):
    calibrate, found = ComposedDistillation.calibrate, []

    def spied(self, logits, labels):
        calibrate(self, logits, labels)
        found.append(list(self.mask.temperatures))

    monkeypatch.setattr(ComposedDistillation, "calibrate", spied)
    words = ["method=distill", "mask=dp_calibrated", "engine.max_steps=1", "controls=[]", f"cache_root={tmp_path}"]
    run_rows(recipe, compose_config(folder, *words, f"output_root={tmp_path}/a"))
    favour(split, "letters")
    run_rows(recipe, compose_config(folder, *words, f"output_root={tmp_path}/b"))
    assert (found[0] != found[1]) == differ


def test_test_images_are_read_once_at_the_end(folder, monkeypatch):
    events = []
    loader, fit = Data.loader, Engine.fit

    def spied_loader(self, split, *arguments, **options):
        found = loader(self, split, *arguments, **options)
        epoch = found.epoch
        found.epoch = lambda *where, **at: events.append(split) or epoch(*where, **at)
        return found

    monkeypatch.setattr(Data, "loader", spied_loader)
    monkeypatch.setattr(Engine, "fit", lambda self, *a, **o: (fit(self, *a, **o), events.append("fit"))[0])
    options = ["seed=41", "engine.max_steps=2", "controls=[xe,self_dist]", f"cache_root={folder}/cache-41"]
    run_rows(recipe, compose_config(folder, *options))
    assert events.count("fit") == 3, "the method and its two controls"
    networks = events[len(events) - events[::-1].index("fit") :]
    assert events.count("test") == 5 and networks.count("test") == 4, "each network once"
    assert "test" not in events[: events.index("fit")] and "val" in events[: events.index("fit")]


def test_without_validation_images_nothing_is_chosen(folder):
    off = "dataset.val_fraction=0"
    with pytest.raises(ConfigError, match=r"candidates are ranked on validation images; dataset.val_fraction=0.1"):
        launch(recipe, compose_config(folder, off, "candidates=[wide,letters]"))
    with pytest.raises(ConfigError, match=r"ordered by their accuracy \(order=given orders nothing\) on validation"):
        launch(multi_teacher, compose_config(folder, off, TEACHERS, config="multi_teacher/multi_teacher"))
    (row,) = run_rows(recipe, compose_config(folder, off, "engine.max_steps=2"))
    assert "val_accuracy_best" not in row.metrics and row.metrics["accuracy_after"] > 0
