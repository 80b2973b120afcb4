"""main_pnc.py from a composed config to its rows and its clone file, on handwritten digits."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hydra import compose
from PIL import Image
from safetensors.torch import load_file

from recombine import data as datasets
from recombine import models, pnc
from recombine.cli import predict
from recombine.cli.search_path import initialize_entry
from recombine.core.errors import ConfigError
from recombine.models.freeze import digest
from recombine.pnc import recipe
from recombine.pnc.biases import BIASES
from recombine.pnc.data import select_outputs
from recombine.run.launch import check
from tests.pnc.parts import SHORT, composed, launched, open_parts

METRICS = ["accuracy_original", "accuracy_cloned", "accuracy_average", "agreement", "intrusion", "logit_shift"]


def test_a_clone_keeps_both_networks_and_works_from_its_file(tmp_path, weights, monkeypatch, capsys):
    before = {name: models.build(name, weights_root=weights) for name in ("low", "high")}
    row = launched(tmp_path, weights, *SHORT)
    m = row.metrics
    assert set(METRICS) <= m.keys() and m["logit_shift"] == 0
    assert m["agreement"] + m["intrusion"] == pytest.approx(100)
    assert m["accuracy_average"] == pytest.approx((m["accuracy_original"] + m["accuracy_cloned"]) / 2)
    assert m["kept_filters"] == pytest.approx(50, abs=1) and m["position"] in (1, 2)
    assert row.series["search_position"] == [1, 2] and len(row.series["search_average"]) == 2
    best = row.series["search_position"].index(m["position"])
    for end in ("", "_low", "_high"):
        assert m[f"select_gain_over_probe{end}"] == row.series[f"search_gain_over_probe{end}"][best]
    gain = row.series["search_average"][best] - m["select_average_probe"]
    assert m["select_gain_over_probe"] == pytest.approx(gain) and m["select_average"] == max(
        row.series["search_average"]
    )
    assert m["gain_over_probe"] == pytest.approx(m["accuracy_average"] - m["accuracy_average_probe"])
    assert m["gain_over_probe_low"] <= m["gain_over_probe"] <= m["gain_over_probe_high"]
    assert m["module_balanced"] == pytest.approx((m["module_accuracy"] + 100 - m["module_false_positives"]) / 2)
    assert 1 < m["flops_ratio"] < 2 and row.cell["classes"] == 2 and row.cell["positions"] == "1 2"
    assert m["learned_bytes"] < m["reference_bytes"] < m["clone_bytes"] and m["target_bytes"] == m["source_bytes"]
    target = models.build("high", weights_root=weights)
    (path,) = (tmp_path / "o").rglob("clone.safetensors")
    assert m["clone_bytes"] == sum(value.nbytes for value in load_file(path).values())
    masks = pnc.load_clones(target, path)["clone"].masks
    written = [f"{int(text, 16):0{len(mask)}b}" for text, mask in zip(row.series["masks"], masks, strict=True)]
    assert written == ["".join(str(int(kept)) for kept in mask) for mask in masks]
    cloned = pnc.attach(target, path)
    data = datasets.open_data(
        {"name": "digits", "class_subset": [0, 1]},
        loader={"kind": "torch", "workers": 0},
        data_root="",
        cache_root=tmp_path / "c",
        seed=0,
        device="cpu",
    )
    batches = [(b.images.clone(), b.labels.clone()) for b in data.loader("test", 64, train=False).epoch(0)]
    data.close()
    hits = [cloned(images).argmax(1) == labels + 5 for images, labels in batches]
    best = cloned(batches[0][0][:3]).softmax(1).max(1)
    for k in range(3):
        Image.fromarray(batches[0][0][k].permute(1, 2, 0).numpy()).save(tmp_path / f"{k}.png")
    files = [str(tmp_path / f"{k}.png") for k in range(3)]
    arguments = [
        "predict.py",
        "--model",
        "high",
        "--weights-root",
        str(weights),
        "--clone",
        str(path),
        "--json",
        *files,
    ]
    monkeypatch.setattr("sys.argv", arguments)
    capsys.readouterr()
    predict.main()
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["class"] for line in lines] == ["5678901"[k] for k in best.indices]
    assert [line["probability"] for line in lines] == pytest.approx(best.values.tolist())
    assert 100 * torch.cat(hits).double().mean() == pytest.approx(m["accuracy_cloned"])
    assert digest(cloned.restore()) == digest(before["high"]) and pnc.read_cards(path)["clone"]["class_names"] == [
        "0",
        "1",
    ]


def test_a_clone_learns_its_classes_and_costs_the_old_ones_little(tmp_path, weights):
    row = launched(tmp_path, weights, "method.positions=[1]", "method.min_steps=150", "optimizer.lr=0.01")
    assert row.metrics["accuracy_cloned"] > 90 and row.metrics["locality_drop"] < 5


ABLATIONS = ["surrogate=direct", "mask=random", "mask=magnitude", "mask=ones", "joint=false", "head=full"]
ABLATIONS += ["source_weights=random"]
RANKED = ["mask=random", "mask=magnitude"]
LONG = pytest.mark.slow
"""Of those that take the same path as another one."""


@pytest.mark.parametrize("option", [pytest.param(o, marks=LONG if o in RANKED else ()) for o in ABLATIONS])
def test_its_ablations_run(tmp_path, weights, option):
    row = launched(tmp_path, weights, *SHORT, "method.positions=[2]", f"method.{option}")
    assert row.metrics["kept_filters"] == pytest.approx(100 if option == "mask=ones" else 50, abs=1)
    assert (row.metrics["logit_shift"] == 0) == (option != "head=full")
    if option == "mask=ones":
        assert [row.metrics[f"similarity_{name}"] for name in ("cloned", "others")] == pytest.approx([1, 1])
        assert row.metrics["module_accuracy"] > 95


def test_similarity_to_the_source_around_each_of_its_classes(tmp_path, weights):
    row = launched(tmp_path, weights, *SHORT[:-1], "clone=[3]", "method=pnc_fixed", "similarity.by_class=true")
    values = row.series["similarity_by_class"]
    assert row.metrics["position"] == 2 and row.series["source_classes"] == list("01234")
    assert values[3] == pytest.approx(row.metrics["similarity_cloned"]) and len({*values}) == 5


def test_similarity_by_class_leaves_out_classes_without_test_images(tmp_path, weights):
    data = {"source_data.source": "digits", "source_data.class_subset": "null", "source_data.classes": 5}
    data |= {"source_data.label_map": "[0,0,0,3,3,4,4,4,4,4]"}
    given = [f"{key}={value}" for key, value in data.items()]
    short = [*SHORT[:-1], "method=pnc_fixed", "similarity.by_class=true", "dataset.class_subset=[5,6,7,8,9]"]
    row = launched(tmp_path, weights, *short, *given, "clone=[3]")
    assert row.series["source_classes"] == ["2", "4", "9"] and len(row.series["similarity_by_class"]) == 3


def test_without_the_targets_own_data_the_sources_logits_are_matched(tmp_path, weights):
    row = launched(tmp_path, weights, *SHORT, "use_target_data=false")
    assert row.metrics["logit_shift"] == 0 and row.cell["use_target_data"] is False and row.cell["head"] == "concat"
    assert row.metrics["samples_original"] == 0 < row.metrics["samples_cloned"]
    place, without = BIASES.index(row.metrics["bias"]), BIASES.index(0)
    for name in ("original", "cloned"):
        curve = row.series[f"bias_{name}"]
        assert curve[without] == row.metrics[f"accuracy_{name}"]
        assert curve[place] == row.metrics[f"accuracy_{name}_biased"]
    assert row.series["bias_original"] == sorted(row.series["bias_original"], reverse=True)


BASELINES = ["direct_ensemble", "probe", "probe_source", "finetune", "lwf", "lwf_source", "ewc", "joint_full"]
BASELINES += ["joint_subset"]
TWINS = ["probe_source", "lwf_source", "joint_subset"]


@pytest.mark.parametrize("method", [pytest.param(m, marks=LONG if m in TWINS else ()) for m in BASELINES])
def test_what_it_is_compared_with(tmp_path, weights, method):
    short = [] if method == "direct_ensemble" else ["method.epochs=1", "method.min_steps=3"]
    row = launched(tmp_path, weights, f"method={method}", *short)
    m = row.metrics
    assert row.cell["method"] == method and set(METRICS) <= m.keys() and row.cell["head"] == "none"
    assert (m["logit_shift"] == 0) == (method in ("direct_ensemble", "probe", "probe_source"))
    assert m["flops_ratio"] == pytest.approx(2 if method in ("direct_ensemble", "probe_source") else 1, abs=0.01)
    images = {"direct_ensemble": (0, 0), "joint_full": (748 - 23, 301 - 9)}.get(method, (201, 81))
    assert (m["samples_original"], m["samples_cloned"]) == pytest.approx(images, abs=2)
    if method != "direct_ensemble":
        rate, factor = (0.003, 10) if "probe" in method else (0.001, 0.1) if "joint" in method else (0.01, 0.1)
        assert m["learning_rate"] in (pytest.approx(rate), pytest.approx(rate * factor))
    if method == "ewc":
        assert m["strength"] in (100, 1000, 10000)


def test_the_joint_network_trained_on_everything_knows_everything(tmp_path, weights):
    row = launched(tmp_path, weights, "method=joint_full", "method.epochs=6", "scratch.optimizer.lr=0.01")
    assert row.metrics["accuracy_average"] > 90


def test_labels_and_parts_of_the_data(tmp_path, weights):
    with open_parts(tmp_path, weights, "clone=[3,1]") as parts:
        data = parts.data
        assert data.outputs == [1, 3] and data.class_names == ["1", "3"]
        loader, target_samples = data.joint_loader(40, parts.target)
        (first, *_) = batches = list(loader.epoch(0))
        assert len(first.labels) == 40 and bool((first.labels[:target_samples] < 5).all())
        assert set(first.labels[target_samples:].tolist()) == {5, 6}
        stored = data.cloned.source.samples("train").labels
        for batch in batches:
            digits = [stored[i] for i in batch.index[target_samples:]]
            assert batch.labels[target_samples:].tolist() == [{1: 5, 3: 6}[label] for label in digits]
        for each in (data.target, data.cloned):
            train, select = (data.split(each, name) for name in ("train", "select"))
            digits = [int(name) for name in each.class_names]
            everything = np.flatnonzero(np.isin(each.source.samples("train").labels, digits))
            assert len(train) + len(select) == pytest.approx(0.3 * len(everything), abs=1)
            assert not set(train) & set(select) and set(train) | set(select) <= set(everything)


def test_too_few_images_of_a_class_are_told_with_what_mends_it(tmp_path, weights):
    told = r"select_fraction=0.1 needs 10 images in use of every class of digits_.*, but \d has \d; give more images"
    with pytest.raises(ConfigError, match=told):
        launched(tmp_path, weights, "source_data.fraction=0.05", "dataset.fraction=0.05")


def test_a_network_is_no_source_for_itself(tmp_path, weights):
    same = ["target.name=low", "dataset=digits_low", "source_data.class_subset=[0,1,5,6,7]", "clone=['5']"]
    with pytest.raises(ConfigError, match="source cnn is the target itself, weight for weight; give another"):
        launched(tmp_path, weights, *same)


def test_a_batch_takes_no_more_images_than_there_are(tmp_path, weights):
    with open_parts(tmp_path, weights, "select_fraction=0.9") as parts:
        sizes = [len(indices) for _, indices in parts.data.parts()]
        loader, first = parts.data.joint_loader(64, parts.target)
        (batch,) = loader.epoch(0)
        assert sum(sizes) < 64 and len(batch.labels) == sum(sizes) and first == sizes[0]


def test_the_row_says_what_was_cloned_where_a_class_was_left_out(tmp_path, weights):
    both = ["source_data.class_subset=[1,2,3,4,5]", "clone=['5','2',0]", "on_collision=first"]
    row = launched(tmp_path, weights, "method=direct_ensemble", *both)
    assert row.cell["clone"] == "2 0" and row.cell["classes"] == 2


def test_a_scalar_in_a_sweep_is_told_and_noted(tmp_path, weights):
    cfg = composed(tmp_path, weights, "clone=1")
    assert any(text.startswith("clone=1: a list of whole numbers or text") for text in check(recipe, cfg))
    assert recipe.cell(cfg)["clone"] == "1"


def test_mistakes_are_reported_before_anything_runs(tmp_path, weights):
    wrong = ["method.mask=best", "lime.num_fit=10", "select_fraction=2", "similarity={images:0,vectors:20}"]
    problems = "\n".join(check(recipe, composed(tmp_path, weights, *wrong, "method.positions=first")))
    for words in (
        "method.positions=first: a list of whole numbers of at least 0 or last, or null is needed, such as",
        "method.mask=best: one of learned, ones",
        "try lime.num_fit=34",
        "select_fraction=2: a number above 0 and below 1 is needed, such as select_fraction=0.1",
    ):
        assert words in problems
    assert "similarity.images=0: a whole number of at least 1 is needed" in problems
    vectors = composed(tmp_path, weights, "similarity={images:1,vectors:20}")
    assert any("try similarity.vectors=34" in text for text in check(recipe, vectors))
    with pytest.raises(ConfigError, match=r"clone=\[7\]: \[7\] not among 2 classes; known are 0 \(a\), 1 \(b\)"):
        select_outputs([7], ["a", "b"])
    with pytest.raises(ConfigError, match="the target knows 5 already"):
        launched(tmp_path, weights, "source_data.class_subset=[1,2,3,4,5]", "clone=['5']")
    with pytest.raises(ConfigError, match=r"method.positions=\[9\]: \[9\] are none; there are \[0, 1, 2\]$"):
        launched(tmp_path, weights, "method.positions=[9]")
    with pytest.raises(ConfigError, match=r"\[3\] are none; .*; at 3 no layer is cloned, which is a linear probe"):
        launched(tmp_path, weights, "method.positions=[3]")


def test_networks_that_share_no_place_are_named_and_the_image_is_one(tmp_path, weights):
    net = {"name": "cnn", "widths": [4], "weights": None, "size": 16, "mean": [0.3] * 3, "std": [0.3] * 3}
    models.save(models.build(net, classes=5, seed=0), tmp_path / "flat.safetensors", {})
    flat = [f"source.name={tmp_path / 'flat.safetensors'}", "method=pnc_whole", *SHORT[:3]]
    with pytest.raises(ConfigError, match=r"cnn and cnn share no position .*; method.positions=\[0\] clones it whole"):
        launched(tmp_path, weights, *flat)
    assert launched(tmp_path / "image", weights, *flat, "method.positions=[0]").metrics["position"] == 0


@pytest.mark.parametrize("method", ["direct_ensemble", "ewc", "joint_full", "pnc_not_joint"])
def test_every_method_of_the_experiment_composes(method):
    with initialize_entry("pnc"):
        cfg = compose("pnc/pnc", ["experiment=pnc/mnist", f"method={method}", "data_root=nowhere"])
    assert cfg.method.name == method and cfg.source.name == "lenet5-mnist_low-s1000"
    problems = check(recipe, cfg)
    assert problems and all("nowhere" in text or "lenet5-mnist" in text for text in problems)
