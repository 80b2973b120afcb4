"""main_stitch.py from a composed config to its row, its front and its offspring files, on handwritten digits."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from recombine import models, stitch
from recombine.cli import predict
from recombine.core.errors import ConfigError
from recombine.core.results import read_rows
from recombine.run.launch import check
from recombine.stitch import offspring, recipe
from recombine.stitch.images import open_images
from recombine.stitch.loading import load_parents
from recombine.stitch.search.space import references
from tests.leaks import of_test, spoil
from tests.stitch.digits import QUICK, composed, launched, new_run, train_on_digits

CONFIG = str(Path(__file__).parents[2] / "config")
FEW = "search.population=12"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A folder with two small networks that tell digits apart, differently."""
    folder = tmp_path_factory.mktemp("parents")
    train_on_digits(folder, {"first": {"name": "resnet8"}, "second": {"name": "cnn", "widths": [8, 16, 16]}})
    return folder


def test_a_search_leaves_a_row_a_front_and_offspring(tmp_path, weights, monkeypatch, capsys):
    (row,) = launched(tmp_path, weights, FEW)
    m, s = row.metrics, row.series
    assert row.status == "ok" and row.cell["a"] == "first" and row.cell["search"] == "ga_familial"
    assert m["requests"] == 60 >= m["evaluations"] and m["images_used"] <= 100 and m["pairs"] == m["pairs_bound"]
    assert m["front"] == len(s["front_cost"]) == len(s["front_on"])
    assert s["front_cost"] == sorted(s["front_cost"], reverse=True)
    assert s["front_search_accuracy"] == sorted(s["front_search_accuracy"], reverse=True)
    assert s["reference_cost"][2] == s["reference_cost"][0] + s["reference_cost"][1]
    assert m["test_accuracy_a"] == s["reference_test_accuracy"][0]
    assert s["requests"][-1] == 60 and len(s["stitch_errors"]) == 2 * m["pairs"]
    (folder,) = (tmp_path / "o" / "stitch").iterdir()
    assert len(pd.read_csv(folder / "front.csv")) == m["front"]
    assert len(json.loads((folder / "matching.json").read_text())["pairs"]) == m["pairs"]
    assert sorted(p.name for p in (folder / "plots").iterdir()) == ["fronts.png", "stitch_errors.png", "switches.png"]
    files = sorted((folder / "offspring").iterdir())
    assert [file.name for file in files] == ["0.safetensors", "1.safetensors"][: int(m["front"])]
    card = stitch.read_card(files[0])
    best = s["front_test_accuracy"][s["saved"][0]]
    assert card["metrics"]["test_accuracy"] == best
    assert m["offspring"] == sum(map(bool, s["front_on"])) <= m["front"] and bool(card["on"]) == (m["offspring"] > 0)
    # the file by itself scores what the run measured
    model, hits, total = stitch.load(files[0]), 0, 0
    with opened(tmp_path, weights, FEW) as (images, parent):
        for batch in images.test_loader(parent, 64).epoch(0):
            hits += int((model(batch.images).argmax(1) == batch.labels).sum())
            total += len(batch.labels)
    assert 100 * hits / total == pytest.approx(best)
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(tmp_path / "black.png")
    words = ["--model", str(files[0]), "--json", "--device", "cpu", str(tmp_path / "black.png")]
    monkeypatch.setattr("sys.argv", ["predict.py", *words])
    capsys.readouterr()
    predict.main()
    assert re.fullmatch(r"\d", json.loads(capsys.readouterr().out)["class"])


@contextmanager
def opened(folder, weights, *overrides):
    """The images of a config, and the first parent."""
    cfg, run = composed(folder, weights, *overrides), new_run(folder)
    with closing(open_images(cfg, run)) as images:
        yield images, load_parents(cfg, run)[0]


@pytest.mark.parametrize(
    ("search", "method"), [("nsga2", "stitch"), ("gomea", "stitch_joint"), ("lk_gomea", "stitch_distill")]
)
def test_every_other_search_runs_with_stitches_trained_in_every_way(tmp_path, weights, search, method):
    more = ["method.sampled_offspring=2"] if method != "stitch" else []  # most stitches are in none of them
    rows = launched(
        tmp_path, weights, f"search={search}", f"method={method}", *more, "engine=debug", "num_saved=0", FEW
    )
    assert rows[0].metrics["requests"] <= 60 and rows[0].status == "ok"


def test_a_sweep_measures_each_single_stitch(tmp_path, weights):
    few = ["search=single_stitch_sweep", "matching.max_matches=4", "budget=19", "num_saved=0"]
    (row,) = launched(tmp_path, weights, *few)
    (folder,) = (tmp_path / "o" / "stitch").iterdir()
    _, *lines = map(json.loads, (folder / "evaluations.jsonl").read_text().splitlines())
    known = {(*line["on"], line["output"]): 100 * line["accuracy"] for line in lines}
    families = [[(2 * pair + side, output) for pair in range(4)] for side, output in ((1, 2), (0, 2), (1, 1), (0, 0))]
    assert row.series["single_stitch_accuracy"] == [known[network] for family in families for network in family]
    assert (folder / "plots" / "single_stitches.png").is_file()
    assert row.cell["population"] == "none"


def test_a_sweep_is_whole_or_refused(tmp_path, weights):
    sweep = ["search=single_stitch_sweep", "matching.max_matches=4"]
    with pytest.raises(ConfigError, match=r"budget=18: with 4 pairs, .* 19 networks; set budget=19"):
        launched(tmp_path, weights, *sweep, "budget=18")
    (problem,) = check(recipe, composed(tmp_path, weights, *sweep, "max_cost=1000"))
    assert "set max_cost=null" in problem


def test_settings_that_an_offspring_would_not_take_are_refused(tmp_path, weights, net):
    file = offspring.save(net, references(len(net.genotype))[2], tmp_path / "parent.safetensors")
    assert not check(recipe, composed(tmp_path, weights, f"a.name={file}"))
    (problem,) = check(recipe, composed(tmp_path, weights, f"a.name={file}", "a.size=32", "a.crop_pct=0.5"))
    assert problem.startswith("a.size=32 and a.crop_pct=0.5: ") and "leave it out" in problem


def test_searches_of_one_pair_share_stitches(tmp_path, weights, caplog):
    caplog.set_level("INFO")
    short = [FEW, "engine.max_steps=8", "num_saved=0"]
    first, second = (launched(tmp_path, weights, f"seed={seed}", "search=random", *short)[-1] for seed in (0, 1))
    assert len(list((tmp_path / "c" / "stitches").iterdir())) == 1 and "were trained before" in caplog.text
    assert first.series["stitch_errors"] == second.series["stitch_errors"]
    assert first.series["front_on"] != second.series["front_on"]
    launched(tmp_path, weights, "method.init_images=200", *short)
    assert len(list((tmp_path / "c" / "stitches").iterdir())) == 2


def test_no_image_is_both_searched_and_tested_on(tmp_path, weights):
    with opened(tmp_path, weights, "search_fraction=0.3") as (images, parent):
        loaders = images.search_loader(parent, 64), images.test_loader(parent, 64)
        seen = [torch.cat([batch.index.clone() for batch in loader.epoch(0)]) for loader in loaders]
        assert sorted(torch.cat(seen).tolist()) == images.data.indices("test").tolist()
    assert not set(seen[0].tolist()) & set(seen[1].tolist())
    assert len(seen[0]) == pytest.approx(0.3 * len(torch.cat(seen)), abs=1)


def test_other_test_images_change_no_choice(tmp_path, weights, monkeypatch):
    words = [FEW, "bn_images=0", "num_saved=1"]
    (before,) = launched(tmp_path / "as they are", weights, *words)
    with opened(tmp_path, weights, *words) as (images, parent):
        search, test = (set(load(parent, 64).indices.tolist()) for load in (images.search_loader, images.test_loader))
    spoil(monkeypatch, lambda loader, index: of_test(loader, index) & torch.isin(index, torch.tensor(sorted(test))))
    (after,) = launched(tmp_path / "test", weights, *words)
    chosen = ("front_on", "front_search_accuracy", "front_temperature", "stitch_errors", "saved", "hypervolume")
    assert all(before.series.get(key) == after.series.get(key) for key in chosen)
    assert before.metrics["search_hypervolume"] == after.metrics["search_hypervolume"]
    assert not search & test and before.series["front_test_accuracy"] != after.series["front_test_accuracy"]


def test_few_images_are_spread_over_all(tmp_path, weights):
    """The first ones of a set that is sorted by class would be of one class."""
    with opened(tmp_path, weights) as (images, parent):
        every, few = (images.test_loader(parent, 16, most) for most in (None, 3))
        assert few.samples == 48 < every.samples
        assert few.indices.tolist() == [every.indices[k * every.samples // 48] for k in range(48)]


def test_images_of_another_set_may_be_searched_on(tmp_path, weights):
    other = ["dataset@search_data=digits", "search_data.test_fraction=0.2"]
    with opened(tmp_path, weights, *other) as (images, parent):
        test, search = images.test_loader(parent, 64), images.search_loader(parent, 64)
        assert test.samples == len(images.data.indices("test"))
        assert search.samples == pytest.approx(0.2 * test.samples, abs=1)


def test_problems_of_both_parents_and_all_data_are_reported_together(tmp_path, weights):
    wrong = ["a.name=fourth", "b.name=third", "search_fraction=1", "dataset@search_data=cifar10"]
    problems = check(recipe, composed(tmp_path, weights, *wrong, "search_data.download=false"))
    for sign in ("fourth", "third", "search_fraction=1", "cifar10"):
        assert any(sign in problem for problem in problems), problems


def test_parents_have_to_be_two(tmp_path, weights):
    shutil.copyfile(weights / "first.safetensors", tmp_path / "twin.safetensors")
    with pytest.raises(ConfigError, match=r"first and .*twin.safetensors are one network"):
        launched(tmp_path, weights, f"b.name={tmp_path / 'twin.safetensors'}")


def test_parents_without_a_common_size_are_refused(tmp_path, weights):
    with pytest.raises(ConfigError, match=r"a.size=32 or b.size=16"):
        launched(tmp_path, weights, "b.size=32")


@pytest.mark.parametrize("what", ["stitches", "all"])
def test_offspring_are_trained_further(tmp_path, weights, what):
    quick = ["search=random", FEW, "num_saved=3", "retrain.max_steps=3", "retrain.optimizer.lr=0.001"]
    (row,) = launched(tmp_path, weights, *quick, f"retrain.what={what}")
    (folder,) = (tmp_path / "o" / "stitch").iterdir()
    on = [row.series["front_on"][k] for k in row.series["saved"]]
    again = row.series["retrained_test_accuracy"]
    trained = [k for k in range(len(again)) if what == "all" or on[k]]
    assert [value is not None for value in again] == [k in trained for k in range(len(again))]
    parents = {name: models.build(name, weights_root=weights).net.state_dict() for name in ("first", "second")}
    for k in trained:
        file = folder / "offspring" / f"{k}.safetensors"
        state = stitch.load(file).net.state_dict()
        same = [
            torch.equal(value, parents[{"a": "first", "b": "second"}[name[0]]][name[2:]])
            for name, value in state.items()
            if name[:2] in ("a.", "b.")
        ]
        assert all(same) if what == "stitches" else not all(same)
        assert stitch.read_card(file)["metrics"]["test_accuracy"] == again[k]
    assert ("retrained_test_accuracy_gain" in row.metrics) == bool(trained)


@pytest.mark.slow
def test_two_processes_find_what_one_does(tmp_path, weights):
    root = Path(__file__).parents[2]
    common = ["model@a=any", "a.name=first", "model@b=any", "b.name=second", *QUICK, FEW, f"weights_root={weights}"]
    started = {"one": [], "two": ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]}
    found = {}
    for name, words in started.items():
        where = [f"{key}_root={tmp_path / name / key}" for key in ("data", "cache", "output")]
        command = [sys.executable, *words, str(root / "main_stitch.py"), *common, *where]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        (found[name],) = read_rows(tmp_path / name / "output")
    for one, two in zip(found["one"].series["front_on"], found["two"].series["front_on"], strict=True):
        assert one == two
    for key, value in found["one"].metrics.items():
        if not key.endswith("seconds"):
            assert found["two"].metrics[key] == pytest.approx(value, rel=1e-3), key
