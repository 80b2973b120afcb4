"""main_transfer.py from a composed config to its row and its student, on handwritten digits."""

import json

import pytest
import timm
import torch
from digits import compose_config, open_digits, run_rows
from safetensors.torch import load_file
from sklearn.metrics import accuracy_score

from recombine import models as zoo
from recombine.core.errors import ConfigError
from recombine.run.launch import launch
from recombine.transfer import recipe, training

METHODS = ["xe", "kl", "xekl", "xekl_mcl", "kl_dp", "kl_dp_u", "self_dist", "cd", "crd", "bi_kd", "kl_not_negative"]
METHODS += ["kl_positive", "dp_flip_st", "dp_flip_t", "dp_flip_avg", "dp_adaptive"]


@pytest.fixture(scope="module")
def transferred(folder):
    """The row of one transfer, and the folder of its run."""
    cfg = compose_config(folder)
    (row,) = run_rows(recipe, cfg)
    return cfg, row, folder / "output" / "transfer" / row.run


def test_row_equals_scikit_learn_on_the_kept_student(folder, transferred):
    _, row, place = transferred
    data = open_digits(folder)
    batch = next(data.loader("test", 400, train=False).epoch(0))
    data.close()
    weights = folder / "weights"
    models = {"before": "narrow", "after": str(place / "student.safetensors")}
    with torch.no_grad():
        for moment, name in models.items():
            predicted = zoo.build(name, weights_root=weights)(batch.images).argmax(1)
            accuracy = 100 * accuracy_score(batch.labels, predicted)
            assert row.metrics[f"accuracy_{moment}"] == pytest.approx(accuracy)
    assert row.metrics["accuracy_gap"] > 0 and row.metrics["transfer_delta"] > 0, "a stronger teacher teaches digits"
    assert row.metrics["transfer_delta"] == pytest.approx(row.metrics["knowledge_gain"] - row.metrics["knowledge_loss"])
    assert row.cell == recipe.cell(compose_config(folder))
    assert row.series["epoch"] == [1, 2] and len(row.series["gains_per_class"]) == 10
    assert 0 < row.metrics["to_teacher"] < 100
    assert row.metrics["positive_to_teacher"] > row.metrics["negative_to_teacher"]


def test_card_says_what_was_made_of_what(transferred):
    _, row, place = transferred
    card = json.loads((place / "student.json").read_text())
    assert card["metrics"]["transfer_delta"] == row.metrics["transfer_delta"]
    assert card["teacher"] == "wide.safetensors" and card["method"] == "kl_dp"
    assert card["config"]["teacher"]["name"] == "wide"


def test_the_same_command_shows_the_same_rows(transferred, capsys):
    cfg, row, _ = transferred
    assert launch(recipe, cfg) == row.metrics["transfer_delta"]
    assert "finished before" in capsys.readouterr().out


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_and_rows_hold_its_name(folder, method):
    small = ["engine.epochs=1", "engine.max_steps=3", "dataset.test_fraction=0.3"]
    (row,) = run_rows(recipe, compose_config(folder, f"method={method}", *small))
    assert row.status == "ok" and row.cell["method"] == method
    assert torch.isfinite(torch.tensor(row.series["train_loss"])).all()
    assert ("accuracy_teacher_after" in row.metrics) == (method == "bi_kd")


def test_ensemble_needs_no_training(folder):
    (row,) = run_rows(recipe, compose_config(folder, "method=ensemble"))
    data = open_digits(folder)
    batch = next(data.loader("test", 400, train=False).epoch(0))
    data.close()
    with torch.no_grad():
        sure = [zoo.build(n, weights_root=folder / "weights")(batch.images).softmax(1) for n in ("narrow", "wide")]
    picked = [max(pair, key=lambda p: p.max()).argmax() for pair in zip(*sure, strict=True)]
    assert row.metrics["accuracy_after"] == pytest.approx(100 * accuracy_score(batch.labels, picked))
    assert not list((folder / "output" / "transfer" / row.run).glob("*.safetensors"))


def test_unsupervised_methods_never_see_a_label(folder, monkeypatch):
    """The student is the same, bit for bit, when every training label is another one."""
    data = open_digits(folder)
    students, spoilt = [], False
    original = type(data.loader("train", 64, train=True))._batch

    def _batch(loader, images, index, epoch):
        batch = original(loader, images, index, epoch)
        return batch._replace(labels=(batch.labels + 3) % 10) if spoilt and loader.train else batch

    monkeypatch.setattr(type(data.loader("train", 64, train=True)), "_batch", _batch)
    data.close()
    for method, equal in (("kl_dp_u", True), ("kl_dp", False)):
        students = []
        for spoilt in (False, True):
            cfg = compose_config(folder, f"method={method}", "engine.epochs=1", f"output_root={folder}/labels-{spoilt}")
            (row,) = run_rows(recipe, cfg)
            students.append(load_file(folder / f"labels-{spoilt}" / "transfer" / row.run / "student.safetensors"))
        assert all(torch.equal(students[0][key], students[1][key]) for key in students[0]) == equal


def test_labels_are_taken_away():
    class Loader:
        batch_size, samples, digest = 2, 2, ""

        def epoch(self, epoch, start):
            from recombine.core.types import Batch

            yield Batch(torch.zeros(2), torch.tensor([3, 4]), torch.arange(2))

    (batch,) = training.UnlabelledLoader(Loader()).epoch(0)
    assert batch.labels.tolist() == [-1, -1]


@pytest.mark.parametrize("augment", ["none", "flip"])
def test_cached_logits_change_nothing(folder, augment):
    students = []
    for cached in (True, False):
        cfg = compose_config(folder, f"cache_teacher_logits={cached}", f"dataset.augment={augment}")
        (row,) = run_rows(recipe, cfg)
        students.append(load_file(folder / "output" / "transfer" / row.run / "student.safetensors"))
    for key, value in students[0].items():
        torch.testing.assert_close(value, students[1][key], rtol=1e-4, atol=1e-6)


def test_logits_too_large_to_cache_are_computed_in_every_step(folder, transferred, caplog):
    _, row, place = transferred
    (anew,) = run_rows(recipe, compose_config(folder, "cache_limit_gib=1e-6"))
    assert "would take 0.0001 GiB, more than cache_limit_gib=1e-06: they are computed in every step" in caplog.text
    states = [load_file(place.parent / run / "student.safetensors") for run in (row.run, anew.run)]
    for key, value in states[0].items():
        torch.testing.assert_close(value, states[1][key], rtol=1e-4, atol=1e-6)


def test_curves_are_of_validation_images_and_the_result_of_test_images(transferred):
    _, row, place = transferred
    logged = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
    curve = [line["val/accuracy_after"] for line in logged if "val/accuracy_after" in line]
    assert curve == row.series["accuracy_after"] and max(curve) == row.metrics["val_accuracy_best"]
    assert any("val/positive_flips" in line for line in logged)
    (result,) = [line["test/accuracy_after"] for line in logged if "test/accuracy_after" in line]
    assert result == row.metrics["accuracy_after"] != curve[-1]
    assert any("train/knowledge_gain" in line for line in logged)


def test_variants_of_a_method_have_cells_of_their_own(folder):
    cells = [recipe.cell(compose_config(folder, f"method={method}")) for method in ("xekl", "paper/xekl")]
    assert cells[1] == {**cells[0], "variant": "paper"} and "variant" not in cells[0]


def test_both_directions_train_as_published(folder):
    cfg = compose_config(folder, "method=bi_kd", "optimizer.lr=1e-6", "batch_size=128")
    assert (cfg.optimizer["_target_"], cfg.optimizer.weight_decay) == ("torch.optim.Adam", 1e-5)
    assert training.learning_rate(cfg) == 1e-6, "not scaled with the batch size"


def test_a_student_of_timms_loads_in_plain_timm(folder):
    """One line of timm, and it scores what the row says."""
    start = zoo.build({"name": "timm:resnet10t", "weights": None, "size": 32}, classes=10)
    zoo.save(start, folder / "weights" / "start.safetensors", {})
    options = ["student.name=start", "batch_size=32"]
    small = ["engine.max_steps=2", "dataset.test_fraction=0.1", "eval_batch_size=30"]
    (row,) = run_rows(recipe, compose_config(folder, *options, *small))
    path = folder / "output" / "transfer" / row.run / "student.safetensors"
    assert json.loads(path.with_suffix(".json").read_text())["load"].startswith("timm.create_model('resnet10t'")
    model = timm.create_model("resnet10t", num_classes=10, checkpoint_path=str(path)).eval()
    ours = zoo.build(str(path))
    images = torch.randint(0, 255, (2, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(model(ours.preprocess(images)), ours(images))


def test_the_teacher_sees_its_own_size_or_the_students(folder, transferred):
    _, own, _ = transferred
    (shared,) = run_rows(recipe, compose_config(folder, "teacher_preprocessing=student"))
    assert own.metrics["accuracy_teacher"] != shared.metrics["accuracy_teacher"]
    assert own.metrics["accuracy_before"] == shared.metrics["accuracy_before"]


def test_ranking_counts_what_the_student_lacks(folder):
    """Against plain forward passes over the validation images."""
    rows = run_rows(recipe, compose_config(folder, "candidates=[letters,wide]"))
    assert [(row.metrics["rank"], row.cell["split"]) for row in rows] == [(1, "val"), (2, "val")]
    data = open_digits(folder)
    batch = next(data.loader("val", 400, train=False).epoch(0))
    data.close()
    with torch.no_grad():
        right = {
            name: zoo.build(name, weights_root=folder / "weights")(batch.images).argmax(1) == batch.labels
            for name in ("narrow", "letters", "wide")
        }
    flips = {row.cell["teacher"]: row.metrics["positive_flips_before"] for row in rows}
    for name, found in flips.items():
        assert found == pytest.approx(100 * (right[name] & ~right["narrow"]).double().mean().item())
    assert list(flips.values()) == sorted(flips.values(), reverse=True)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("teacher.name=narrow", "same network"),
        ("teacher.name=seven", "different numbers of classes: student 10, teacher 7"),
        ("teacher.name=cnn-mnist-s3", "main_pretrain.py model=cnn dataset=mnist seed=3 weights_root="),
        ("teacher.name=resnet18d_of_nobody", "teacher: unknown model"),
        ("+student.weights=null", "student: .*random weights"),
        ("lr_scaling=square", "lr_scaling=square: one of none, linear"),
        ("teacher_preprocessing=both", "teacher_preprocessing=both: one of own, student"),
        ("method._target_=recombine.engine.method.Supervised", "is not a transfer method; method=kl_dp is one"),
        ("candidates=wide", r"candidates=wide: a list of names .*, such as candidates=\[resnet32,resnet56\]"),
        ("candidates=3", "candidates=3: a list of names"),
        ("candidates=[3]", r"candidates=\[3\]: a list of names"),
        ("candidates=[]", r"candidates=\[\]: a list of names"),
        ("candidates=[wide,wide]", "candidates: wide is named twice"),
        ("candidates=[wide,seven]", "different numbers of classes: student 10, candidate wide 10, candidate seven 7"),
        ("candidates=[cnn-mnist-s3]", "main_pretrain.py model=cnn dataset=mnist seed=3 weights_root="),
        ("controls=[kl]", r"controls=\[kl\]: .*xe"),
        ("fit_heads=sure", "fit_heads=sure: true or false"),
        (
            "method.temperature=warm",
            "method.temperature=warm: a number above 0 is needed, such as method.temperature=1",
        ),
        ("~method.name", "method.name: a value is needed"),
        ("candidates=[wide,nobody_knows_this]", "candidate nobody_knows_this: unknown model"),
    ],
)
def test_bad_input_is_one_clear_message(folder, override, message):
    zoo.save(zoo.build({"name": "cnn"}, classes=7), folder / "weights" / "seven.safetensors", {})
    cfg = compose_config(folder, override.lstrip("+"))
    with pytest.raises(ConfigError, match=message):
        launch(recipe, cfg)


def test_a_copy_under_another_name_is_the_same_network(folder):
    model = zoo.build("narrow", weights_root=folder / "weights")
    zoo.save(model, folder / "weights" / "copy.safetensors", {})
    with pytest.raises(ConfigError, match=r"same network \(copy and narrow\).*method=self_dist"):
        launch(recipe, compose_config(folder, "teacher.name=copy"))


def test_a_run_begins_with_what_its_networks_are(folder, capsys):
    rows = run_rows(recipe, compose_config(folder, "seed=31", "candidates=[wide,letters]"))
    lines = [line.split("│") for line in capsys.readouterr().out.splitlines() if " px │" in line]
    told = {words[1].strip(): (words[4].strip(), float(words[-2])) for words in lines}
    assert told["narrow"] == ("100 %", pytest.approx(rows[0].metrics["accuracy_before"], abs=0.01))
    for row in rows:
        assert told[row.cell["teacher"]] == ("0 %", pytest.approx(row.metrics["accuracy_teacher"], abs=0.01))


def test_frozen_networks_are_compiled_too(folder, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, *a, **o: compiled.append(getattr(self, "name", "")))
    run_rows(recipe, compose_config(folder, "engine.compile=true", "engine.max_steps=1", "cache_teacher_logits=false"))
    assert sorted(compiled) == ["narrow", "narrow", "wide"], "the student, its frozen copy and the teacher"


def test_a_part_of_the_test_images_that_cannot_be_had_is_told_before_a_training(folder, tmp_path):
    cfg = compose_config(folder, "dataset.test_fraction=0.0001", f"output_root={tmp_path}")
    with pytest.raises(ConfigError, match=r"dataset.test_fraction=0.0001 of \d+ samples") as refused:
        launch(recipe, cfg)
    assert not refused.value.started and not list(tmp_path.iterdir())
