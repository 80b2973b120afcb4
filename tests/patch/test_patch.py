"""main_patch.py from a composed config to its rows: every protocol and method, on handwritten digits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from recombine import data as datasets
from recombine import models, patch
from recombine.core.errors import ConfigError
from recombine.core.results import read_rows
from recombine.patch import recipe, training
from recombine.patch.adapters import NormAdaptation
from recombine.patch.cached_features import CachedFeatureLoader
from recombine.patch.paint import training as paint_training
from recombine.run.launch import check, launch
from tests import composing
from tests.leaks import of_test, spoil

CONFIG = str(Path(__file__).parents[2] / "config")
LOW = "{name:low,dataset:digits,class_subset:[5,6,7]}"
HIGH = "{name:high,dataset:digits,class_subset:[8,9]}"
SMALL = ["loader=torch", "loader.workers=0", "logger=none", "device=cpu", "engine.epochs=2", "optimizer.lr=0.003"]
SMALL += ["model=any", "dataset=digits", "dataset.class_subset=[0,1,2,3,4]", f"tasks=[{LOW},{HIGH}]", "batch_size=64"]
METHODS = ["delta", "fc", "parallel_adapter", "series_adapter", "bn_adapt", "bn_adapt method.mode=dua", "finetune"]
METHODS += ["paint method.alphas=[0,0.5,1]", "paint method.alphas=[0.5] method.statistics=recalibrated"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A ResNet-8 that tells 0 to 4 apart, as a checkpoint."""
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    node = {"name": "digits", "class_subset": [0, 1, 2, 3, 4]}
    settings = {"loader": {"kind": "torch", "workers": 0}, "data_root": "", "seed": 0, "device": "cpu"}
    data = datasets.open_data(node, cache_root=folder, **settings)
    model = models.build({"name": "resnet8", "weights": None, "size": 16, "width": 8}, classes=5)
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    for epoch in range(2):
        for batch in data.loader("train", 64, train=True).epoch(epoch):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model.train()(batch.images), batch.labels).backward()
            optimizer.step()
    data.close()
    return models.save(model.eval(), folder / "base.safetensors", {})


def composed(folder, base, *overrides):
    roots = [f"{root}_root={folder / root}" for root in ("data", "weights", "cache", "output")]
    words = [word for override in overrides for word in override.split()]
    return composing.composed("patch", *roots, *SMALL, f"model.name={base}", *words)


def launched(folder, base, *overrides):
    cfg = composed(folder, base, *overrides)
    launch(recipe, cfg)
    return read_rows(folder / "output")


@pytest.mark.parametrize("method", METHODS)
def test_single_tasks(tmp_path, base, method):
    rows = launched(tmp_path, base, f"method={method}")
    system = [row for row in rows if "task" not in row.cell]
    rows = [row for row in rows if "task" in row.cell]
    assert [row.cell["task"] for row in rows] == ["low", "high"]
    removable = "paint" not in method and method != "finetune"
    assert [row.cell["protocol"] for row in system] == ["sequential"] * removable
    for row in system:
        parts = [row.metrics[f"accuracy_{name}"] for name in ("base_after", "low", "high")]
        assert row.metrics["mean"] == pytest.approx(sum(parts) / 3)
        assert parts[1:] == [each.metrics["accuracy_patched"] for each in rows]
    for row in rows:
        m = row.metrics
        a, b = m["accuracy_base_after"], m[f"accuracy_{row.cell['task']}"]
        assert m["accuracy_base_before"] > 60 and b > 20
        assert m["harmonic_mean"] == pytest.approx(2 * a * b / (a + b) if a and b else 0.0)
        if "paint" not in method and method != "finetune":
            assert m["accuracy_base_before"] == a
    if method == "delta":
        assert rows[0].cell["modules"] == "1" and max(r.metrics["accuracy_patched"] for r in rows) > 60
        assert len(rows[0].series["alpha_layer3.0"]) == 1
        assert list((tmp_path / "output").rglob("skip_weights_low.png"))


def test_a_training_goes_on_from_a_patch_file(tmp_path, base):
    words = [f"tasks=[{LOW}]", "method=lora"]
    (first,) = launched(tmp_path / "one", base, *words)
    (file,) = (tmp_path / "one").rglob("patches/low.safetensors")
    start = f"patch_weights={file}"
    (same,) = launched(tmp_path / "two", base, *words, start, "optimizer.lr=0")
    assert same.metrics["accuracy_low"] == first.metrics["accuracy_low"] and same.cell["start"] == "low"
    assert any(key.startswith("patch ") and "low.safetensors" in key for key in same.provenance["inputs"])
    kept = load_file(next((tmp_path / "two").rglob("patches/low.safetensors")))
    assert all(torch.equal(value, kept[name]) for name, value in load_file(file).items())
    for other, told in (
        ([f"tasks=[{LOW}]", "method=lora", "method.rank=2"], r"its options is .*; give its method and its task"),
        ([f"tasks=[{LOW}]", "method=ssf"], "its kind is lora, and here scale_shift"),
        ([f"tasks=[{HIGH}]", "method=lora"], "its class names is"),
    ):
        with pytest.raises(ConfigError, match=told):
            launched(tmp_path / "three", base, *other, start)
    for wrong, told in (
        ([*words, f"patch_weights={base}"], "there is no patch file there"),
        (["method=lora", start], "is one task's patch, and tasks names 2"),
        ([f"tasks=[{LOW}]", "method=finetune", start], "a method that is no fine-tuning"),
    ):
        (problem,) = check(recipe, composed(tmp_path, base, *wrong))
        assert told in problem


def test_joint_counts_confusions_between_tasks(tmp_path, base, monkeypatch):
    """One classifier over the union: who takes every image for one of the first task has nothing of the second."""
    widths = []
    accuracy = recipe.accuracy

    class Mistaken(torch.nn.Module):
        """Right within each task, but an image of the second task is taken for one of the first."""

        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, images):
            logits = self.model(images)
            widths.append(logits.shape[1])
            return torch.cat([logits[:, :3], logits[:, 3:] - 1e6], 1)

    def mistaken(engine, model, *rest, **more):
        return accuracy(engine, Mistaken(model), *rest, **more)

    monkeypatch.setattr(recipe, "accuracy", mistaken)
    (row,) = launched(tmp_path, base, "protocol=joint", "method=delta", "method.modules=all")
    assert set(widths) == {5} and row.metrics["accuracy_high"] == 0 < row.metrics["accuracy_low"]
    share = row.metrics["accuracy_patched"] / row.metrics["accuracy_low"]
    assert 0.55 < share < 0.65  # three of five classes
    assert row.cell["tasks"] == "low-high" and row.cell["modules"] == "all"


def test_images_for_adaptation_are_of_all_tasks_in_turn_and_in_no_order(tmp_path, base, monkeypatch):
    """DUA's momentum sinks from image to image, so the first ones count most."""
    opened, streams = [], []
    opening = recipe.open_tasks

    def opening_too(*arguments):
        opened.extend(opening(*arguments))
        return opened

    monkeypatch.setattr(recipe, "open_tasks", opening_too)
    monkeypatch.setattr(NormAdaptation, "prepare", lambda _, __, images, ___: streams.append(images(80).flatten(1)))
    launched(tmp_path, base, "protocol=joint", "method=bn_adapt", "method.mode=dua")
    (stream,) = streams
    assert len(stream) == 80
    for number, task in enumerate(opened):
        whole = torch.cat([batch.images for batch in task.eval_loader("train").epoch(0)])
        whole = task.model.preprocess.fit(whole).flatten(1)
        places = [int((whole == image).all(1).nonzero()[0]) for image in stream[number::2]]
        assert sorted(places) != places and len(set(places)) == 40


def test_joint_paint_chooses_by_the_concatenated_set_and_recalibrates_on_all_tasks(tmp_path, base, monkeypatch):
    """Also: one decoding of each set however many alphas there are, and no predictions of throw-away weights kept."""
    opened, seen, chosen = [], [], []
    loader, recalibrate, choose = datasets.Data.loader, paint_training.recalibrate, paint_training.choose_alpha

    def opening(self, split, *arguments, **options):
        opened.append((self.name, split, options["train"]))
        return loader(self, split, *arguments, **options)

    def looking(model, batches):
        seen.append(torch.cat([batch.labels for batch in batches.epoch(0)]))
        recalibrate(model, batches)

    def choosing(method, accuracies, sizes=None):
        chosen.append(sizes)
        return choose(method, accuracies, sizes)

    monkeypatch.setattr(datasets.Data, "loader", opening)
    monkeypatch.setattr(paint_training, "recalibrate", looking)
    monkeypatch.setattr(paint_training, "choose_alpha", choosing)
    words = ["protocol=joint", "method=paint", "method.alphas=[0.5,1]", "method.statistics=recalibrated"]
    launched(tmp_path, base, *words)
    assert len(chosen) == 1 and chosen[0][0] > chosen[0][1] > 0
    for labels in seen:  # of both tasks and in no order, from the first batch on
        assert set(labels[:64].tolist()) == {0, 1, 2, 3, 4} and (labels.diff() < 0).any()
    whole = [each for each in opened if not each[2]]
    assert len(whole) == len(set(whole)), whole
    assert len(list((tmp_path / "cache" / "predictions").glob("*.safetensors"))) == 1


def test_seconds_of_a_task_are_its_own(tmp_path, base):
    low, high, system = (row.metrics["fit_seconds"] for row in launched(tmp_path, base, "method=fc"))
    assert low > 0 and high > 0 and system == pytest.approx(low + high)


@pytest.mark.parametrize("method", ["delta", "fc"])
def test_from_scratch_trains_the_network_too(tmp_path, base, method):
    rows = launched(tmp_path, base, "protocol=scratch", f"method={method}", f"tasks=[{LOW}]", "engine.epochs=4")
    assert rows[0].metrics["accuracy_patched"] > 50
    body = sum(p.numel() for name, p in models.build(str(base)).net.named_parameters() if "linear" not in name)
    more = rows[0].metrics["trainable_parameters"] - body
    assert more > 0 if method == "delta" else more == 0


def test_a_kept_patch_works_in_a_fresh_start(tmp_path, base):
    row = launched(tmp_path, base)[0]
    (path,) = (tmp_path / "output").rglob("low.safetensors")
    model = models.build(str(base))
    system = patch.attach(model, path)
    card = system.list()["low"]
    measured = {"accuracy_base": row.metrics["accuracy_base_after"], "accuracy_low": row.metrics["accuracy_low"]}
    assert card["metrics"] == measured
    assert card["datasets"] == ["digits"] and card["blocks"] == ["layer3.0"] and card["base_dataset"] == "digits"
    assert card["training"]["epochs"] == 2 and card["training"]["optimizer"]["lr"] == 0.003
    node = {"name": "digits", "class_subset": [5, 6, 7]}
    settings = {"loader": {"kind": "torch", "workers": 0}, "data_root": "", "seed": 0, "device": "cpu"}
    data = datasets.open_data(node, cache_root=tmp_path, **settings)
    with torch.no_grad():
        hits = [
            (system(b.images, "low").argmax(1) == b.labels).float()
            for b in data.loader("test", 50, train=False).epoch(0)
        ]
    data.close()
    assert 100 * torch.cat(hits).mean().item() == pytest.approx(row.metrics["accuracy_low"])


def test_training_from_a_kept_prefix_is_training_from_images(tmp_path, base):
    """The same losses to rounding, whether the prefix is computed once or in every step."""
    histories = []
    for gib in (0, 4):
        cfg = composed(tmp_path / str(gib), base, f"feature_cache_gib={gib}", f"tasks=[{LOW}]")
        kept = []
        original = training.cache_features

        def spying(*arguments, original=original, kept=kept):
            loaders = original(*arguments)
            kept.append(isinstance(loaders[0], CachedFeatureLoader))
            return loaders

        with pytest.MonkeyPatch.context() as patcher:
            patcher.setattr(training, "cache_features", spying)
            launch(recipe, cfg)
        (row,) = read_rows(tmp_path / str(gib) / "output")
        histories.append([*row.series["alpha_layer3.0"], row.metrics["accuracy_low"]])
        assert kept == [gib > 0]
    assert histories[0] == pytest.approx(histories[1], abs=2e-3)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["protocol=both"],
            r"protocol=both: one of single, joint, sequential, end_to_end, .*, segmentation, detection is",
        ),
        (["tasks=[mnits]"], r"no dataset 'mnits'; did you mean 'mnist'"),
        (["tasks=[]"], r"tasks is empty"),
        (["tasks=[digits,digits]"], r"tasks names digits twice"),
        (["tasks=[{name:a.b,dataset:digits}]"], r"'a.b' is no possible name.*\{name: another, dataset: digits\}"),
        (["tasks=[{name:patched,dataset:digits}]"], r"'patched' means something else"),
        (["dataset.classes=10", "dataset.class_subset=null"], r"has 5 classes and the data 10"),
        (["protocol=joint", "tasks=[digits]"], r"protocol=joint needs at least two tasks"),
        (
            ["method.modules=0", "method.norm=nowhere"],
            r"method.modules=0: all or a whole number of at least 1 or a list of names is needed.*\n.*norm=nowhere",
        ),
        (["routing=[guess]"], r"routing=\[guess\]: one of confidence, features"),
        (["protocol=scratch", "method=paint"], r"protocol=scratch has no base to interpolate with"),
        (
            ["protocol=scratch", "regularizer=lwf"],
            r"protocol=scratch has no trained base to hold on to",
        ),
        (["adaptation=adda"], r"adaptation=adda is of protocol=zero_shot, not single"),
        (["regularizer=uniform_prior"], r"protocol=single leaves the base as it is: regularizer=none"),
    ],
)
def test_wrong_commands_say_what_mends_them(tmp_path, base, overrides, message):
    with pytest.raises(ConfigError, match=message):
        launch(recipe, composed(tmp_path, base, *overrides))
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method.modules=7"], r"method.modules=7: CifarResNet has 3 blocks"),
        (["method.budget=10"], r"method.budget=10: one module already has [0-9,]+ parameters"),
        (["method.skips=new"], r"has no new skip: method.skips=all"),
        (["protocol=zero_shot", f"tasks=[{LOW}]"], r"low has 3 classes and digits, the source, 5"),
    ],
)
def test_what_a_network_lacks_is_told_before_anything_is_evaluated(tmp_path, base, monkeypatch, overrides, message):
    monkeypatch.setattr(recipe, "evaluate_base", lambda *_: pytest.fail("the base was evaluated"))
    with pytest.raises(ConfigError, match=message):
        launch(recipe, composed(tmp_path, base, *overrides))


def test_a_network_without_blocks_is_told(tmp_path):
    path = models.save(models.build({"name": "lenet5", "weights": None}, classes=5), tmp_path / "lenet.safetensors", {})
    with pytest.raises(ConfigError, match="has no block"):
        launch(recipe, composed(tmp_path, path))


def plainly(*overrides):
    return composing.composed("patch", *overrides)


@pytest.mark.parametrize(
    ("overrides", "model", "dataset"),
    [
        ([], "resnet8-digits-s0", "digits"),
        (["model=resnet56"], "resnet56", "cifar10"),
        (["dataset=mnist"], "resnet8-digits-s0", "mnist"),
        (["experiment=patch/cifar10"], "resnet20", "cifar10"),
    ],
)
def test_a_base_comes_with_its_data(overrides, model, dataset):
    cfg = plainly(*overrides)
    assert (cfg.model.name, cfg.dataset.name) == (model, dataset)


def test_without_arguments_it_takes_the_network_that_the_demo_trains(tmp_path, capsys):
    """Or says how to train it, with nothing downloaded in either case."""
    roots = [f"{root}_root={tmp_path / root}" for root in ("data", "weights", "cache", "output")]
    cfg = plainly(*roots, *SMALL[:4], "engine.epochs=1")
    with pytest.raises(ConfigError, match=r"main_pretrain.py model=resnet8 dataset=digits seed=0 weights_root=/"):
        launch(recipe, cfg)
    weights = tmp_path / "weights" / "resnet8-digits-s0.safetensors"
    models.save(models.build({"name": "resnet8", "weights": None}, classes=10), weights, {})
    launch(recipe, cfg)
    rows = read_rows(tmp_path / "output")
    assert [row.cell.get("task") for row in rows] == ["low_digits", "high_digits", None]
    (line,) = [text for text in capsys.readouterr().out.splitlines() if " px │" in text]
    assert "0 %" in line and f"{rows[0].metrics['accuracy_base_before']:.2f}" in line


@pytest.mark.parametrize("protocol", ["single", "joint", "sequential"])
def test_paint_chooses_by_held_out_images_and_never_by_test_images(tmp_path, base, monkeypatch, protocol):
    words = [f"protocol={protocol}", "method=paint method.alphas=[0,0.5,1]", "engine.epochs=1"]

    def choices(rows):
        return [{key: v for key, v in row.series.items() if "cho" in key or key == "alpha"} for row in rows]

    before = launched(tmp_path / "as they are", base, *words)
    spoil(monkeypatch, of_test)
    after = launched(tmp_path / "test", base, *words)
    assert any("choice_low" in key for key in choices(before)[0]) and choices(before) == choices(after)
    held = "accuracy_val"
    assert [row.metrics.get(held) for row in before] == [row.metrics.get(held) for row in after]
    assert all(
        b.metrics["accuracy_low"] != a.metrics["accuracy_low"] for b, a in zip(before[:1], after[:1], strict=True)
    )


def test_images_find_their_task_by_the_features_of_training_images(tmp_path, base, monkeypatch):
    words = [
        "protocol=sequential",
        "method=fc",
        "engine.epochs=1",
        "routing=[confidence,features]",
        "feature_cache_gib=0",
    ]
    (before,) = launched(tmp_path / "as they are", base, *words)
    spoil(monkeypatch, lambda loader, index: loader.split.name == "train" and not loader.train)
    (after,) = launched(tmp_path / "train", base, *words)
    assert before.metrics["routing_features"] != after.metrics["routing_features"]
    assert before.metrics["routing_confidence"] == after.metrics["routing_confidence"]
    m = before.metrics
    assert all(m[f"mean_routed_{name}"] < m[f"routing_{name}"] for name in ("features", "confidence"))


def test_a_part_of_the_test_images_that_cannot_be_had_is_told_before_a_training(tmp_path, base):
    task = "tasks=[{name:low,dataset:digits,test_fraction:0.0001}]"
    with pytest.raises(ConfigError, match=r"task.test_fraction=0.0001 of \d+ samples") as refused:
        launch(recipe, composed(tmp_path, base, task))
    assert not refused.value.started and not list((tmp_path / "output").rglob("row.json"))
