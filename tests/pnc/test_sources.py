"""Several sources for one target: data, training beside each other, calibration, files, and what can go wrong."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from scipy.optimize import minimize
from torch.nn import functional as F

from recombine import data as datasets
from recombine import models, pnc
from recombine.cli import artifacts, predict
from recombine.core.errors import ConfigError
from recombine.core.results import read_rows
from recombine.models.freeze import digest
from recombine.pnc import recipe
from recombine.pnc.calibration import Calibration, calibrate
from recombine.pnc.clone import serialization
from recombine.pnc.clone.cloned_network import ClonedNetwork
from recombine.pnc.clone.part import Clone
from recombine.pnc.data import first_outputs
from recombine.pnc.plots import plot_search
from recombine.run.launch import check, launch
from tests.pnc.parts import SHORT, composed, launched, open_parts
from tests.pnc.test_clone import branch_of

LOW = "{name: low, dataset: digits_low, clone: [0, 1]}"
MIDDLE = "{name: middle, dataset: digits, class_subset: [2, 3, 4], clone: ['4']}"
TWO = f"sources=[{LOW},{MIDDLE}]"


def predict_digits(cfg, net, classes):
    """Logits of the test digits of some classes, and the digits."""
    node = {"name": "digits", "class_subset": classes}
    where = {"data_root": "", "cache_root": cfg.cache_root, "seed": 0, "device": "cpu"}
    data = datasets.open_data(node, loader={"kind": "torch", "workers": 0}, **where)
    with torch.no_grad():
        parts = [(net(b.images), b.labels.clone()) for b in data.loader("test", 64, train=False).epoch(0)]
    data.close()
    logits, labels = (torch.cat(values) for values in zip(*parts, strict=True))
    return logits, torch.tensor(classes)[labels]


def accuracy(logits, digits, order):
    return 100 * float((torch.tensor(order)[logits.argmax(1)] == digits).double().mean())


@pytest.fixture(scope="module")
def two(tmp_path_factory, weights):
    """A run with two sources: its config, its row and its file."""
    folder = tmp_path_factory.mktemp("two")
    cfg = composed(folder, weights, *SHORT, TWO)
    launch(recipe, cfg)
    (row,) = read_rows(folder / "o")
    (path,) = (folder / "o").rglob("clone.safetensors")
    return cfg, row, path


def test_two_sources_give_a_network_that_each_can_leave(two, weights):
    cfg, row, path = two
    m = row.metrics
    assert row.cell["source"] == "low + middle" and row.cell["clone"] == "0 1 + 4"
    assert list(pnc.read_cards(path)) == ["clone_1", "clone_2"]
    target = models.build("high", weights_root=weights)
    before, cloned = digest(target), pnc.attach(target, path)
    assert cloned.class_names == ["5", "6", "7", "8", "9", "0", "1", "4"]
    order = [int(name) for name in cloned.class_names]
    parts = {"original": [5, 6, 7, 8, 9], "cloned": [0, 1, 4], "cloned_1": [0, 1], "cloned_2": [4]}
    logits = {name: predict_digits(cfg, cloned, digits) for name, digits in parts.items()}
    for name, (values, digits) in logits.items():
        assert accuracy(values, digits, order) == pytest.approx(m[f"accuracy_{name}"])
    assert (
        torch.equal(logits["original"][0][:, :5], predict_digits(cfg, target, parts["original"])[0])
        and m["logit_shift"] == 0
    )
    left = cloned.detach("clone_1")
    for name in ("original", "cloned_2"):
        values, digits = predict_digits(cfg, left, parts[name])
        assert torch.equal(values, logits[name][0][:, [0, 1, 2, 3, 4, 7]])
        kept = accuracy(values, digits, [5, 6, 7, 8, 9, 4])
        assert kept == pytest.approx(
            m["accuracy_cloned_without_1" if name == "cloned_2" else f"accuracy_{name}_without_1"]
        )
    assert left.restore() is target and digest(target) == before
    assert m["position_1"] in (1, 2) and m["module_parameters_2"] > 0 and m["reference_bytes"] < m["clone_bytes"]
    assert len(row.series["search_gain_over_probe_1"]) == len(row.series["search_position_1"]) == 2
    assert m["gain_over_probe"] == pytest.approx(m["accuracy_average"] - m["accuracy_average_probe"])
    for name in ("search_1.png", "search_2.png"):
        assert (path.parent / "plots" / name).stat().st_size > 5000


def test_a_clone_is_the_one_its_source_gives_alone(two, tmp_path, weights):
    """Sources do not know of each other, but for the calibration."""
    row = launched(tmp_path, weights, *SHORT, f"sources=[{MIDDLE}]")
    (path,) = (tmp_path / "o").rglob("clone.safetensors")
    (alone,), (_, beside) = serialization.read_clones(path), serialization.read_clones(two[2])
    assert alone.card["name"] == "clone" and row.metrics["position"] == two[1].metrics["position_2"]
    assert alone.tensors.keys() == beside.tensors.keys()
    differ = {key for key, value in alone.tensors.items() if not torch.equal(value, beside.tensors[key])}
    assert differ == {"scale", "bias"}
    assert float(alone.tensors["scale"]) == 1 and float(alone.tensors["bias"]) == 0


def test_classes_of_several_sources_follow_each_other(tmp_path, weights):
    with open_parts(tmp_path, weights, TWO, "source_data.fraction=0.5") as parts:
        first, second = parts.pairs
        assert first_outputs(parts.pairs) == [5, 7]
        assert first.class_names == ["0", "1"] and second.class_names == ["4"]
        assert second.target is first.target
        assert second.source.settings.fraction == 0.5 and parts.sources[1].classes == 3


def test_a_class_that_two_sources_have(tmp_path, weights):
    both = f"sources=[{LOW},{{name: low, dataset: digits_low, clone: [1, 3]}}]"
    twice = r"the source low knows 1 already; .* leave these out by on_collision=first"
    with pytest.raises(ConfigError, match=twice), open_parts(tmp_path, weights, both):
        pass
    with open_parts(tmp_path, weights, both, "on_collision=first") as parts:
        assert [pair.class_names for pair in parts.pairs] == [["0", "1"], ["3"]]
    nothing, same = r"the source low knows 0, 1 already; clone other classes of low$", f"sources=[{LOW},{LOW}]"
    with pytest.raises(ConfigError, match=nothing), open_parts(tmp_path, weights, same, "on_collision=first"):
        pass


@pytest.fixture
def cloned(weights):
    """A target with a clone of two classes and one of one, whose logits are far too large."""
    target, low, middle = (models.build(name, weights_root=weights) for name in ("high", "low", "middle"))
    first, second = (
        Clone(branch_of(target, low, 1, [0, 1]), ["0", "1"]),
        Clone(branch_of(target, middle, 1, [2]), ["4"]),
    )
    second.head.fc.bias.data += 6
    return ClonedNetwork(target, list("56789")).attach(first, "a").attach(second, "b")


def training_images(pairs):
    """All images that calibration may train on: the target's own, then those of each source's classes."""
    batches = []
    for data, offset in ((pairs[0].target, 0), (pairs[0].cloned, 5), (pairs[1].cloned, 7)):
        part = pairs[0].split(data, "train")
        (batch,) = data.loader("train", len(part), train=False, indices=part).epoch(0)
        batches.append((batch.images.clone(), batch.labels + offset))
    return [torch.cat(values) for values in zip(*batches, strict=True)]


@pytest.fixture(params=[True, False])
def parts(request, tmp_path, weights):
    """Two sources, with and without the target's own images."""
    with open_parts(tmp_path, weights, TWO, f"use_target_data={str(request.param).lower()}") as parts:
        yield parts


def test_calibration_finds_the_scales_and_biases_that_scipy_finds(parts, cloned):
    """All classes are compared, or without the target's own images the cloned ones among themselves."""
    use_target_data = parts.data.use_target_data
    first = 0 if use_target_data else 5
    before = {key: value.clone() for key, value in cloned.state_dict().items()}
    images, labels = training_images(parts.pairs)
    images, labels = images[labels >= first], labels[labels >= first]
    with torch.no_grad():
        logits = cloned(images).double()

    def objective(numbers):
        numbers, column = torch.tensor([1.0, 0.0, *numbers]).double(), torch.tensor([0, 0, 0, 0, 0, 2, 2, 4])
        scale, bias = numbers[column], numbers[column + 1]
        return float(F.cross_entropy((logits * scale + bias)[:, first:], labels - first))

    step = Calibration(cloned, first)(SimpleNamespace(images=images, labels=labels))
    assert float(step.loss.detach()) == pytest.approx(objective([1.0, 0.0, 1.0, 0.0]), rel=1e-4)
    best = minimize(objective, [1.0, 0.0, 1.0, 0.0], method="BFGS").fun
    calibrate(cloned, cloned.target, parts.pairs, parts.trainer, 2, min_steps=400)
    numbers = [float(value) for clone in cloned.clones.values() for value in (clone.scale, clone.bias)]
    assert objective(numbers) < 0.6 * objective([1.0, 0.0, 1.0, 0.0]) and objective(numbers) < best + 0.05
    after = cloned.state_dict()
    changed = {key for key, value in before.items() if not torch.equal(value, after[key])}
    assert changed == {f"clones.{name}.{part}" for name in "ab" for part in ("scale", "bias")}
    assert not any(parameter.requires_grad for parameter in cloned.parameters())


def test_a_file_is_measured_again_and_only_with_its_classes(two, tmp_path, weights):
    _, row, path = two
    again = ["method=from_file", f"method.files=[{path}]", TWO]
    again_row = launched(tmp_path, weights, *again)
    for name in ("accuracy_original", "accuracy_cloned", "accuracy_cloned_2", "accuracy_average_without_1"):
        assert again_row.metrics[name] == row.metrics[name]
    assert "accuracy_source_1" not in again_row.metrics  # the file holds what it needs
    assert not check(recipe, composed(tmp_path, weights, *again[:2], TWO.replace("name: low", "name: gone")))
    assert recipe.files(composed(tmp_path, weights, *again)) == [path]
    with pytest.raises(
        ConfigError, match=r"holds clones of the classes \[\['0', '1'\], \['4'\]\] and .* \[\['0', '1'\]\]"
    ):
        launched(tmp_path, weights, *again[:2])
    problems = check(recipe, composed(tmp_path, weights, "method=from_file", "method.files=[none.safetensors]"))
    assert problems == ["method.files: there is no none.safetensors"]


def shell(monkeypatch, capsys, module, *words):
    monkeypatch.setattr("sys.argv", ["script", *map(str, words)])
    capsys.readouterr()
    module.main()
    return capsys.readouterr().out


def test_clone_files_are_put_together_and_taken_apart(two, tmp_path, weights, monkeypatch, capsys):
    path, mine, small, whole = two[2], *(tmp_path / f"{name}.safetensors" for name in ("mine", "small", "whole"))
    images = torch.randint(0, 256, (5, 3, 16, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    target, low, middle = (models.build(name, weights_root=weights) for name in ("high", "low", "middle"))

    def logits(place, *sources):
        cloned = pnc.attach(target, place, sources=sources)
        value = cloned(images)
        cloned.restore()
        return value

    both = logits(path)
    shell(monkeypatch, capsys, artifacts, "attach", mine, path)
    shell(monkeypatch, capsys, artifacts, "detach", mine, "clone_1")
    assert torch.equal(logits(mine), both[:, [0, 1, 2, 3, 4, 7]])
    one = tmp_path / "one.safetensors"
    serialization.write_clones(
        one, [clone._replace(card=clone.card | {"name": "clone_2"}) for clone in serialization.read_clones(path)[:1]]
    )
    shown = shell(monkeypatch, capsys, artifacts, "attach", mine, one)
    assert list(pnc.read_cards(mine)) == ["clone_2", "clone_22"] and "clone_22" in shown
    assert torch.equal(logits(mine), both[:, [0, 1, 2, 3, 4, 7, 5, 6]])
    listed = shell(monkeypatch, capsys, artifacts, "list", mine, weights / "high.safetensors")
    assert "clone_22" in listed and "student" in listed
    shell(monkeypatch, capsys, artifacts, "export", mine, small, "--form", "reference")
    assert small.stat().st_size == serialization.file_size(serialization.read_clones(small)) < mine.stat().st_size
    assert torch.equal(logits(small, middle, low), logits(mine))
    networks = ["--model", "high", "--source", "low", "--source", "middle", "--weights-root", weights]
    shell(monkeypatch, capsys, artifacts, "export", small, whole, "--form", "whole", *networks)
    assert whole.stat().st_size == mine.stat().st_size
    for made, original in zip(serialization.read_clones(whole), serialization.read_clones(mine), strict=True):
        assert made.card == original.card and made.tensors.keys() == original.tensors.keys()
        assert all(torch.equal(value, original.tensors[key]) for key, value in made.tensors.items())


def test_a_customised_network_classifies_images(two, tmp_path, weights, monkeypatch, capsys):
    path, small = two[2], tmp_path / "small.safetensors"
    serialization.write_clones(small, [serialization.to_reference(clone) for clone in serialization.read_clones(path)])
    images = torch.randint(0, 256, (3, 3, 16, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    for k, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / f"{k}.png")
    cloned = pnc.attach(models.build("high", weights_root=weights), path)
    expected = [cloned.class_names[k] for k in cloned(images).argmax(1)]
    common = ["--model", "high", "--weights-root", weights, "--json", *(tmp_path / f"{k}.png" for k in range(3))]
    ways = [["--clone", path], ["--clone", small, "--source", "low", "--source", "middle"]]
    for way in ways:
        lines = shell(monkeypatch, capsys, predict, *common, *way).splitlines()
        assert [json.loads(line)["class"] for line in lines] == expected
    with pytest.raises(ConfigError, match="holds no weights of its source, cnn"):
        shell(monkeypatch, capsys, predict, *common, "--clone", small, "--source", "middle")


def test_what_cannot_be_put_together_or_taken_apart(two, tmp_path, weights, monkeypatch, capsys):
    path, small = two[2], tmp_path / "small.safetensors"
    first, second = serialization.read_clones(path)
    with pytest.raises(ConfigError, match="the class 0, 1, 4 comes twice; leave one of the clones out"):
        shell(monkeypatch, capsys, artifacts, "attach", path, path)
    with pytest.raises(ConfigError, match="holds no clone 'b'; it holds: clone_1, clone_2"):
        shell(monkeypatch, capsys, artifacts, "detach", path, "b")
    serialization.write_clones(small, [serialization.to_reference(second)])
    with pytest.raises(ConfigError, match=r"clone_2 is the last clone of .*: without it the network is its target"):
        shell(monkeypatch, capsys, artifacts, "detach", small, "clone_2")
    with pytest.raises(ConfigError, match="--form whole takes the sources' weights: give --model"):
        shell(monkeypatch, capsys, artifacts, "export", small, small, "--form", "whole")
    with pytest.raises(ConfigError, match="these are clones for different targets"):
        serialization.write_clones(small, [first, second._replace(card=second.card | {"target": "other"})])
    with pytest.raises(ConfigError, match=r"holds 2 clones \(clone_1, clone_2\): one name cannot be given to all"):
        pnc.attach(models.build("high", weights_root=weights), path, "mine")


def test_mistakes_in_the_list_of_sources_are_reported_together(tmp_path, weights):
    wrong = "sources=[{name: low, dataset: digits_low},{name: low, dataset: digts, clone: [0]},7]"
    problems = "\n".join(check(recipe, composed(tmp_path, weights, wrong, "on_collision=last", "calibrate_epochs=-1")))
    assert "sources, entry 1: clone not given; such as 'sources=[{name: cnn-digits_low-s1000" in problems
    assert "sources, entry 2: there is no dataset 'digts'; did you mean 'digits'" in problems
    assert "sources, entry 3: 7 is no source" in problems
    more = composed(tmp_path, weights, TWO.replace("class_subset", "class_subst"), "on_collision=last", "method=lwf")
    problems = "\n".join(check(recipe, more))
    assert "sources, entry 2: unknown setting dataset.class_subst: did you mean" in problems
    assert (
        "on_collision=last: one of error, first is needed" in problems
        and "method=lwf takes one source; method=pnc" in problems
    )


def test_the_picture_of_a_search_shows_every_position_and_the_probe():
    curve = {"original": [80.0, 81.0], "cloned": [60.0, 70.0], "average": [70.0, 75.5], "similarity": [1.2, 1.4]}
    gains = {"gain_over_probe": [-1.0, 4.5], "gain_over_probe_low": [-3.0, 1.0], "gain_over_probe_high": [2.0, 7.0]}
    upper, lower = plot_search(curve | gains, ["R1", "R2-3"], 1, 71.0).axes
    assert [list(line.get_ydata()) for line in upper.lines[:3]] == [curve[k] for k in ("original", "cloned", "average")]
    assert list(upper.lines[3].get_ydata()) == [71.0, 71.0]
    (bars,) = upper.containers
    assert [segment[:, 1].tolist() for segment in bars.lines[2][0].get_segments()] == [[68.0, 73.0], [72.0, 78.0]]
    assert list(lower.lines[0].get_ydata()) == curve["similarity"] and list(lower.lines[1].get_xdata()) == [1, 1]
    assert [text.get_text() for text in lower.get_xticklabels()] == ["R1", "R2-3"]
    del curve["similarity"]
    assert len(plot_search(curve | gains, ["R1", "R2"], 0, 71.0).axes) == 1
