"""Somebody's folder of images and two networks of a library: the student that comes out works without this project."""

import json
import shutil

import numpy as np
import pytest
import timm
import torch
from digits import compose_config, run_rows
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from recombine import models as zoo
from recombine.core.errors import ConfigError
from recombine.engine.logistic_regression import logistic_regression
from recombine.run.launch import launch
from recombine.transfer import recipe
from recombine.transfer.teacher_cache import FrozenTeachers

SMALL = ["dataset=folder", "dataset.augment=flip", "batch_size=16", "engine.max_steps=2", "optimizer.lr=0.001"]


@pytest.fixture(scope="module")
def pictures(folder):
    """Folders train/<class>, test/<class> of three classes, and two nets of timm with 1,000 and 7 classes."""
    images, labels = load_digits(return_X_y=True)
    place = folder / "pictures"
    for name, digit in (("nought", 0), ("one", 1), ("two", 2)):
        for number, image in enumerate(images[labels == digit][:40]):
            path = place / ("test" if number < 10 else "train") / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.kron((image.reshape(8, 8) * 15.9).astype(np.uint8), np.ones((6, 6), np.uint8))
            Image.fromarray(pixels).save(path)
    for name, classes in (("first", 1000), ("second", 7)):
        node = {"name": "timm:resnet10t", "weights": None, "size": 32, "crop_pct": 0.8}
        zoo.save(zoo.build(node, classes=classes, seed=classes), folder / "weights" / f"{name}.safetensors", {})
    return place


def configure(folder, pictures, *overrides):
    names = ["student.name=first", "teacher.name=second", f"data_root={pictures}"]
    return compose_config(folder, *names, *SMALL, *overrides)


def test_the_student_scores_in_plain_timm_what_the_row_says(folder, pictures):
    (row,) = run_rows(recipe, configure(folder, pictures, "fit_heads=true"))
    assert row.metrics["accuracy_before"] > 60, "random features and a fitted classifier know digits"
    path = folder / "output" / "transfer" / row.run / "student.safetensors"
    load = json.loads(path.with_suffix(".json").read_text())["load"]
    assert load == "timm.create_model('resnet10t', num_classes=3, checkpoint_path='student.safetensors')"
    net = timm.create_model("resnet10t", num_classes=3, checkpoint_path=str(path)).eval()
    transform = timm.data.create_transform((3, 32, 32), crop_pct=0.8, interpolation="bicubic")
    right = []
    for label, name in enumerate(("nought", "one", "two")):
        for file in sorted((pictures / "test" / name).iterdir()):
            with Image.open(file) as image, torch.no_grad():
                right.append(int(net(transform(image.convert("RGB"))[None]).argmax()) == label)
    # resizing differs by rounding between image libraries: one image in thirty may
    assert row.metrics["accuracy_after"] == pytest.approx(100 * np.mean(right), abs=3.4)


def test_other_classes_without_fitting_are_explained(folder, pictures):
    with pytest.raises(ConfigError, match=r"student 1000, teacher 7.*fit_heads=true"):
        launch(recipe, configure(folder, pictures))
    zoo.save(zoo.build({"name": "cnn"}, classes=7), folder / "weights" / "seven_too.safetensors", {})
    with pytest.raises(ConfigError, match=r"has 7 classes and pictures-\w+ has 3.*fit_heads=true"):
        launch(recipe, configure(folder, pictures, "student.name=second", "teacher.name=seven_too"))


def test_regression_is_scikit_learns():
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, 300)
    features = random.normal(size=(300, 5)) * [1, 2, 3, 4, 5] + labels[:, None] + 10
    weight, bias = logistic_regression(torch.tensor(features).float(), torch.tensor(labels), 3, steps=300)
    standard = (features - features.mean(0)) / features.std(0, ddof=1)
    reference = LogisticRegression(C=1 / (2 * 1e-3 * 300), tol=1e-8, max_iter=2000).fit(standard, labels)
    ours = (torch.tensor(features).float() @ weight.T + bias).softmax(1).numpy()
    np.testing.assert_allclose(ours, reference.predict_proba(standard), atol=2e-3)


@pytest.fixture(scope="module")
def half_labelled(pictures, tmp_path_factory):
    """The same folder with half of the training images moved out of their classes."""
    place = tmp_path_factory.mktemp("labels") / "half"
    shutil.copytree(pictures, place)
    for file in sorted((place / "train").glob("*/*.png"))[::2]:
        file.rename(place / "train" / f"{file.parent.name}-{file.name}")
    return place


@pytest.mark.parametrize("method", ["kl_dp", "crd"])
def test_missing_labels_are_explained(folder, half_labelled, method):
    cfg = configure(folder, half_labelled, f"method={method}", "fit_heads=true")
    with pytest.raises(ConfigError, match=rf"method={method} reads labels, but 45 training images.*method=kl_dp_u"):
        launch(recipe, cfg)


@pytest.mark.parametrize("cache_teacher_logits", ["true", "false"])
def test_images_without_labels_serve_methods_that_read_none(folder, half_labelled, cache_teacher_logits, monkeypatch):
    seen = set()
    forward = FrozenTeachers.forward
    monkeypatch.setattr(
        FrozenTeachers, "forward", lambda self, batch: seen.update(batch.index.tolist()) or forward(self, batch)
    )
    options = [
        "method=kl_dp_u",
        "fit_heads=true",
        "engine.max_steps=null",
        "engine.epochs=1",
        f"cache_teacher_logits={cache_teacher_logits}",
    ]
    (row,) = run_rows(recipe, configure(folder, half_labelled, *options, "batch_size=17"))
    assert seen < set(range(90)) and len(seen) == 45 + 40 and row.status == "ok", "five labelled ones are held out"


@pytest.fixture(scope="module")
def unlabelled(pictures, tmp_path_factory):
    """The training images without classes, and nothing else."""
    place = tmp_path_factory.mktemp("labels") / "unlabelled"
    (place / "train").mkdir(parents=True)
    for file in sorted((pictures / "train").glob("*/*.png")):
        shutil.copy(file, place / "train" / f"{file.parent.name}-{file.name}")
    return place


@pytest.fixture(scope="module")
def fitted(folder, pictures):
    """Two networks for three classes."""
    for name, seed in (("three", 0), ("drei", 1)):
        node = {"name": "timm:resnet10t", "weights": None, "size": 32}
        zoo.save(zoo.build(node, classes=3, seed=seed), folder / "weights" / f"{name}.safetensors", {})
    return ["student.name=three", "teacher.name=drei"]


def test_without_any_label_a_student_comes_out(folder, unlabelled, fitted):
    options = ["method=kl_dp_u", "split=null", "dataset.classes=3", "controls=[xe,self_dist]"]
    (row,) = run_rows(recipe, configure(folder, unlabelled, *fitted, *options))
    assert row.status == "ok" and row.cell["split"] == "none"
    assert "accuracy_after" not in row.metrics and 0 <= row.metrics["to_teacher"] <= 100 and row.metrics["steps"] == 2
    before, after = (load_file(path) for path in (folder / "weights" / "three.safetensors", student_of(folder, row)))
    assert any(not torch.equal(before[key], after[key]) for key in after)


def test_unlabelled_training_is_measured_on_labelled_test_images(
    folder, unlabelled, pictures, fitted, tmp_path, caplog, capsys
):
    place = tmp_path / "half_unlabelled"
    shutil.copytree(unlabelled, place)
    shutil.copytree(pictures / "test", place / "test")
    (row,) = run_rows(recipe, configure(folder, place, *fitted, "method=kl_dp_u", "controls=[xe,self_dist]"))
    assert row.metrics["images"] == 30 and "gain_over_self_dist" in row.metrics
    assert "gain_over_xe" not in row.metrics, "there is nothing to fine-tune on"
    assert "val_accuracy_best" not in row.metrics
    assert "no image in train" not in caplog.text + "".join(capsys.readouterr()), "there are, without labels"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "split=test: unlabelled has train"),
        (["split=null"], "no image has a label: give dataset.classes="),
        (["split=null", "dataset.classes=3", "method=kl_dp"], "method=kl_dp reads labels, but 90 training images"),
        (["split=null", "dataset.classes=3", "candidates=[drei]"], "candidates are ranked by validation images"),
    ],
)
def test_what_needs_labels_is_refused_without_them(folder, unlabelled, fitted, options, message):
    with pytest.raises(ConfigError, match=message):
        launch(recipe, configure(folder, unlabelled, *fitted, "method=kl_dp_u", *options))


def student_of(folder, row):
    """The file of a run's student."""
    return folder / "output" / "transfer" / row.run / "student.safetensors"
