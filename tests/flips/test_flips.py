"""main_flips.py from a composed config to rows, matrices and pictures, on handwritten digits."""

import logging
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import accuracy_score

from recombine import data as datasets
from recombine import models as zoo
from recombine.cli.overrides import compose_all
from recombine.core.errors import ConfigError, Interrupted
from recombine.core.locks import exclusive
from recombine.core.results import read_rows
from recombine.flips import recipe
from recombine.flips.candidates import check_models, list_models, randomize
from recombine.flips.evaluation import evaluate_models, lock_file
from recombine.models.libraries import download_size
from recombine.models.model import find_head
from recombine.run.config import validate
from recombine.run.launch import check, launch, record_problems
from tests.composing import composed
from tests.forked import processes

CONFIG = str(Path(__file__).parents[2] / "config")
NAMES = ["wide", "narrow", "letters"]


def compose_config(folder, *overrides):
    roots = [f"{root}_root={folder / root}" for root in ("data", "weights", "cache", "output")]
    common = ["loader=torch", "loader.workers=0", "logger=none", "device=cpu", "text_encoder=null"]
    return composed("flips", *roots, *common, *overrides)


def fit_head(model, images, labels):
    """Train only the classifier, in closed form: real accuracies within a second."""
    with torch.no_grad():
        features = torch.cat([model.features(part) for part in images.split(500)])
        features = torch.cat([features, torch.ones(len(features), 1)], 1).double()
        targets = torch.nn.functional.one_hot(labels, model.classes).double()
        penalty = 1e-3 * torch.eye(features.shape[1], dtype=torch.float64) * len(features)
        solution = torch.linalg.solve(features.T @ features + penalty, features.T @ targets).float()
        head = model.net.get_submodule(find_head(model.net, model.classes))
        head.weight.copy_(solution[:-1].T)
        head.bias.copy_(solution[-1])


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A folder with three networks of different size, preprocessing and skill, and the test images as one batch."""
    folder = tmp_path_factory.mktemp("flips")
    cfg = compose_config(folder)
    data = datasets.open_data(cfg.dataset, loader=cfg.loader, data_root="", cache_root=folder, seed=0, device="cpu")
    train, test = (
        next(data.loader(split, 1400 if split == "train" else 300, train=False).epoch(0)) for split in ("train", "test")
    )
    data.close()
    nodes = [
        {"name": "cnn", "widths": [16, 16, 32, 32]},
        {"name": "cnn", "widths": [4, 4, 8, 8], "size": 16, "mean": [0.1] * 3},
        {"name": "lenet5", "size": 32},
    ]
    for seed, (name, node) in enumerate(zip(NAMES, nodes, strict=True)):
        model = zoo.build({**node, "weights": None}, classes=10, seed=seed)
        fit_head(model, train.images[:: seed + 1], train.labels[:: seed + 1])
        model.name = name
        zoo.save(model, folder / "weights" / f"{name}.safetensors", {"dataset": "digits"})
    return folder, test


@pytest.fixture(scope="module")
def finished(digits):
    folder, _ = digits
    cfg = compose_config(folder, f"models=[{','.join(NAMES)}]")
    launch(recipe, cfg)
    rows = read_rows(folder / "output")
    return folder, rows, folder / "output" / "flips" / rows[0].run


def test_rows_equal_ten_lines_of_numpy(digits, finished):
    """The saved networks, run here one by one on the test images, and counted pair by pair."""
    folder, test = digits
    _, rows, _ = finished
    labels, right = test.labels.numpy(), {}
    for name in NAMES:
        with torch.no_grad():
            right[name] = zoo.build(name, weights_root=folder / "weights")(test.images).argmax(1).numpy() == labels
    assert len(rows) == 6
    for row in rows:
        t, s = right[row.cell["teacher"]], right[row.cell["student"]]
        expected = {
            "rho_pos": 100 * np.mean(t & ~s),
            "rho_neg": 100 * np.mean(~t & s),
            "accuracy_teacher": 100 * np.mean(t),
            "accuracy_student": 100 * np.mean(s),
            "oracle_accuracy": 100 * np.mean(t | s),
        }
        assert {name: row.metrics[name] for name in expected} == pytest.approx(expected)
        assert row.series["positive_flips_per_class"] == np.bincount(labels[t & ~s], minlength=10).tolist()
        assert row.cell["dataset"] == "digits" and row.cell["split"] == "test" and row.cell["baseline"] == "none"
    assert len({row.metrics["accuracy_teacher"] for row in rows}) == 3, "the three differ in skill"
    assert max(row.metrics["rho_pos"] for row in rows) > 1


def test_matrices_and_counts_are_written_as_files(finished):
    _, rows, folder = finished
    table = pd.read_csv(folder / "rho_pos.csv", index_col="teacher")
    counts = np.load(folder / "flips_per_class.npz")
    for row in rows:
        teacher, student = row.cell["teacher"], row.cell["student"]
        assert table.loc[teacher, student] == pytest.approx(row.metrics["rho_pos"], rel=1e-5)
        t, s = (counts["models"].tolist().index(name) for name in (teacher, student))
        assert counts["positive_flips"][t, s].tolist() == row.series["positive_flips_per_class"]
    assert {path.stem for path in (folder / "plots").glob("*.png")} >= {"heat_map", "class_histogram", "gap_scatter"}


def test_predictions_are_taken_from_the_cache(digits, finished, monkeypatch):
    """N models cost N evaluations, once: another pairing of the same models runs no network."""
    folder, _ = digits

    def forward(self, images):
        raise AssertionError("a network was run although its predictions are cached")

    monkeypatch.setattr(zoo.Model, "forward", forward)
    launch(recipe, compose_config(folder, "models=[letters,wide]", f"output_root={folder / 'second'}"))
    assert len(read_rows(folder / "second")) == 2


def test_other_weights_under_the_same_name_are_compared_anew(digits, capsys):
    folder, _ = digits
    root = folder / "changing"
    cfg = compose_config(folder, "models=[first,second]", f"weights_root={root}", f"output_root={folder / 'anew'}")
    for name in ("wide", "letters"):
        model = zoo.build(name, weights_root=folder / "weights")
        model.name = {"wide": "first", "letters": "second"}[name]
        zoo.save(model, root / f"{model.name}.safetensors", {})
    launch(recipe, cfg)
    launch(recipe, cfg)
    assert capsys.readouterr().out.count("finished before") == 1
    zoo.save(randomize(model, 0), root / "second.safetensors", {})
    launch(recipe, cfg)
    assert capsys.readouterr().out.count("finished before") == 0
    (row, _) = read_rows(folder / "anew")
    assert row.metrics["accuracy_student"] < 40


def test_random_copies_know_little(digits):
    folder, _ = digits
    launch(
        recipe,
        compose_config(folder, "models=[wide,letters]", "random_baseline=true", f"output_root={folder / 'random'}"),
    )
    rows = read_rows(folder / "random")
    assert [row.cell["baseline"] for row in rows] == ["none"] * 2 + ["student"] * 2 + ["teacher"] * 2
    for row in rows[2:]:
        side = row.cell["baseline"]
        assert row.cell[side].endswith("-random")
        assert row.metrics[f"accuracy_{side}"] < 40
    assert max(row.metrics["rho_pos"] for row in rows[4:]) < min(row.metrics["rho_pos"] for row in rows[2:4])


def test_random_copy_is_the_same_network_untrained(digits):
    folder, _ = digits
    model = zoo.build("narrow", weights_root=folder / "weights")
    first, second, other = (randomize(model, seed) for seed in (0, 0, 1))
    assert first.digest() == second.digest() != other.digest()
    assert (first.size, first.mean, first.classes) == (16, model.mean, 10)
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    assert {name: value.shape for name, value in first.state_dict().items()} == shapes


def test_all_takes_every_checkpoint_that_fits(digits, caplog):
    folder, _ = digits
    root = folder / "mixed"
    for name, classes, dataset in (
        ("five", 5, "digits"),
        ("elsewhere", 10, "mnist"),
        ("a", 10, "digits"),
        ("b", 10, "digits"),
    ):
        model = zoo.build({"name": "lenet5", "weights": None}, classes=classes, seed=1)
        model.name = name
        zoo.save(model, root / f"{name}.safetensors", {"dataset": dataset})
    (root / "broken.th").write_bytes(b"no network")
    with caplog.at_level(logging.INFO, "recombine.flips"):
        launch(recipe, compose_config(folder, "models=all", f"weights_root={root}", f"output_root={folder / 'third'}"))
    assert {row.cell["teacher"] for row in read_rows(folder / "third")} == {"a", "b"}
    assert all(f"{name} is left out" in caplog.text for name in ("five", "elsewhere", "broken"))


def test_a_missed_claim_is_a_warning(digits, caplog):
    folder, test = digits
    for name, offset in (("boastful", 1.0), ("honest", 0.1)):
        model = zoo.build("wide", weights_root=folder / "weights")
        with torch.no_grad():
            model.claimed_accuracy = 100 * accuracy_score(test.labels, model(test.images).argmax(1)) + offset
        model.name = name
        zoo.save(model, folder / "claims" / f"{name}.safetensors", {})
    with caplog.at_level(logging.WARNING):
        launch(recipe, compose_config(folder, "models=[boastful,honest]", f"weights_root={folder / 'claims'}"))
    assert "boastful: top-1 is" in caplog.text and "honest" not in caplog.text


def test_missing_default_networks_come_with_their_command(tmp_path):
    problems = check(recipe, compose_config(tmp_path))
    assert len(problems) == 1
    command = (
        f"python main_pretrain.py -m model=cnn,lenet5,resnet8 dataset=digits seed=0 weights_root={tmp_path / 'weights'}"
    )
    assert command in problems[0]


def test_only_named_data_sets_get_a_training_command(tmp_path):
    """`dataset=mine` would be refused: that network was trained on a folder or on parquet files of somebody."""
    other, trained = check_models(["cnn-digits-s0", "cnn-mine-s0"], str(tmp_path), None)
    assert "unknown model 'cnn-mine-s0'" in other and "main_pretrain" not in other
    assert "main_pretrain.py model=cnn dataset=digits" in trained and "mine" not in trained


def test_problems_are_found_together(digits):
    folder, _ = digits
    problems = "\n".join(
        check(recipe, compose_config(folder, "models=[wide,wide,resnet2O]", "pairs=some", "loader.kind=tape"))
    )
    for word in ("wide twice", "resnet2O", "resnet20", "pairs=some", "tape"):
        assert word in problems
    assert "at least 2" in "\n".join(check(recipe, compose_config(folder, "models=[wide]")))
    assert check(recipe, compose_config(folder, "models=[wide,letters]")) == []


def test_another_number_of_classes_is_refused(digits):
    folder, _ = digits
    cfg = compose_config(
        folder, "models=[wide,letters]", "dataset.class_subset=[0,1,2]", f"output_root={folder / 'fourth'}"
    )
    with pytest.raises(ConfigError, match="wide has 10 classes") as caught:
        launch(recipe, cfg)
    assert "letters has 10 classes" in str(caught.value)


def test_the_command_line_takes_all_for_the_list_of_models():
    assert compose_all(CONFIG, "prediction_flips/flips", ["models=all"]).problems == []
    cfg = compose_all(CONFIG, "prediction_flips/flips", ["models=3"]).cfg
    (problem,) = validate(cfg, recipe.SETTINGS)
    assert problem.startswith("models=3: all or a list of names")


def test_a_failed_comparison_says_of_which_data(digits, tmp_path):
    folder, _ = digits
    cfg = compose_config(folder, "models=[wide,narrow]", "dataset.class_subset=[cat]", f"output_root={tmp_path}")
    with pytest.raises(ConfigError, match="cat") as refused:
        launch(recipe, cfg)
    assert not list(tmp_path.iterdir())  # alone; in a multirun there is a row
    record_problems(recipe.__name__, cfg, "", refused.value)
    (row,) = read_rows(tmp_path)
    assert (row.status, row.cell) == ("failed", {"dataset": "digits", "split": "test"})


def test_killed_between_networks_it_goes_on_with_the_missing_one(digits, tmp_path, monkeypatch):
    """What was evaluated is kept, and the rows are those of a run that was never stopped."""
    folder, _ = digits
    where = ["models=[wide,narrow,letters]", f"cache_root={tmp_path / 'cache'}"]
    forward, evaluated, kills = zoo.Model.forward, [], [signal.SIGTERM]

    def counted(self, images):
        evaluated.append(self.name)
        if self.name == "narrow" and kills:
            os.kill(os.getpid(), kills.pop())
        return forward(self, images)

    monkeypatch.setattr(zoo.Model, "forward", counted)
    cfg = compose_config(folder, *where, f"output_root={tmp_path / 'killed'}")
    with pytest.raises(Interrupted):
        launch(recipe, cfg)
    assert set(evaluated) == {"wide", "narrow"}
    evaluated.clear()
    launch(recipe, cfg)
    assert set(evaluated) == {"narrow", "letters"}, "the signal stops the one in work at once"
    whole = compose_config(folder, *where[:1], f"output_root={tmp_path / 'whole'}")
    launch(recipe, whole)
    killed, expected = (read_rows(tmp_path / name) for name in ("killed", "whole"))
    assert [row.metrics for row in killed] == [row.metrics for row in expected]


def test_a_network_in_work_elsewhere_is_left_to_it(digits, tmp_path, monkeypatch):
    """Several processes share a list: each takes a network that nobody has, and waits for the last ones."""
    folder, _ = digits
    cfg = compose_config(folder, "models=[wide,narrow,letters]")
    place = {"device": torch.device("cpu"), "seed": 0, "rank": 0, "world": 1}
    run = SimpleNamespace(cache=tmp_path, stop_requested=lambda: None, **place)
    forward, order = zoo.Model.forward, []
    monkeypatch.setattr(zoo.Model, "forward", lambda self, x: order.append(self.name) or forward(self, x))
    data = datasets.open_data_for(cfg, run)
    with ThreadPoolExecutor(1) as pool:
        with exclusive(lock_file(cfg, run, "wide", "wide")):
            found = pool.submit(evaluate_models, cfg, run, data, {name: name for name in NAMES})
            while "letters" not in order:
                time.sleep(0.05)
            assert "wide" not in order
        assert list(found.result()) == NAMES
    data.close()
    assert list(dict.fromkeys(order)) == ["narrow", "letters", "wide"]


def test_patterns_stand_for_a_librarys_networks():
    found = dict(list_models(["timm:resnet18.a1_in1k", "timm:resnet18*"], "weights", ["timm:*fb*", "timm:*tv*"]))
    assert next(iter(found)) == "timm:resnet18.a1_in1k" and len(found) > 2
    assert all(name.startswith("timm:resnet18") for name in found)
    assert not any("fb" in name or "tv" in name for name in found)


def test_downloads_are_counted_without_downloading():
    """ResNet-18: 11,689,512 parameters, 9,600 BatchNorm statistics and 20 counters of 4 bytes."""
    assert download_size("torchvision:resnet18") == 4 * (11_689_512 + 9_600 + 20)
    assert download_size("cnn") == 0


def run_flips(folder, words):
    """The entry, as a process of its own runs it."""
    launch(recipe, compose_config(folder, *words))


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_as_if_it_had_not_been(digits, finished, tmp_path):
    """SIGKILL after times drawn from a seed, until one run lives long enough."""
    folder, _ = digits
    words = [f"models=[{','.join(NAMES)}]", f"output_root={tmp_path / 'out'}", f"cache_root={tmp_path / 'cache'}"]
    random, longest, kills = np.random.default_rng(0), 1.0, 0
    while True:
        process = processes.Process(target=run_flips, args=(folder, words))
        process.start()
        process.join(random.uniform(0, longest))
        if not process.is_alive():
            break
        process.kill()
        process.join()
        longest, kills = 1.5 * longest, kills + 1
    assert process.exitcode == 0 and kills > 1
    assert [row.metrics for row in read_rows(tmp_path / "out")] == [row.metrics for row in finished[1]]
    assert not list((tmp_path / "cache").rglob("*.tmp"))
