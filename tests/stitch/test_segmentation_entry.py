"""main_stitch.py with networks that label pixels: on road scenes, and two steps of the paper's pair."""

from __future__ import annotations

import re

import numpy as np
import pytest
from PIL import Image

from recombine import models, stitch
from recombine.cli import predict
from recombine.core.errors import ConfigError
from recombine.core.results import read_rows
from recombine.models.export import export_network
from recombine.run.launch import check, launch
from recombine.stitch import recipe
from tests import composing
from tests.networks import shaken
from tests.stitch.test_segmentation import NODE


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A folder with both parents of the experiment, smaller and of random weights, for 11 classes."""
    folder = tmp_path_factory.mktemp("parents")
    for seed, (short, backbone) in enumerate({"tv": "mobilenetv2_035", "050": "mobilenetv3_small_050"}.items()):
        node = {**NODE, "name": f"lraspp_mobilenetv2_{short}-camvid-s0", "backbone": backbone, "size": 64}
        models.save(shaken(models.build(node, classes=11, seed=seed)), folder / f"{node['name']}.safetensors", {})
    models.save(models.build("resnet8", classes=11), folder / "classifier.safetensors", {})
    return folder


def composed(folder, weights, data_root, *overrides):
    roots = {"data": data_root / "camvid_small", "weights": weights, "cache": folder / "c", "output": folder / "o"}
    given = [f"{name}_root={path}" for name, path in roots.items()]
    quick = ["loader.workers=0", "logger=none", "device=cpu", "search=random", "seed=0"]
    return composing.composed("stitch", "experiment=stitch/camvid_segmentation", *given, *quick, *overrides)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("dataset=digits", "classifies every pixel, and the data have a label for each image"),
        ("a.name=classifier", "model resnet8 classifies images, and the data have a label for every pixel"),
        (
            "performance=accuracy",
            "performance=accuracy, and dataset=camvid has a label for every pixel; set performance=",
        ),
        ("a.crop_pct=0.875", "a.crop_pct=0.875: masks and boxes are of whole images; set a.crop_pct=1"),
        ("dataset@search_data=digits", "search_data=digits has a label for each image"),
        ("dataset=voc_detection", "has boxes around objects, and here a label for each image or a label for every"),
    ],
)
def test_what_does_not_fit_is_said_first(tmp_path, weights, data_root, override, message):
    problems = check(recipe, composed(tmp_path, weights, data_root, override))
    assert any(re.search(message, text) for text in problems), problems


def test_parents_of_other_classes_are_refused_before_anything_is_matched(tmp_path, weights, data_root):
    models.save(
        models.build({**NODE, "name": "few", "backbone": "mobilenetv2_035"}, classes=3),
        tmp_path / "few.safetensors",
        {},
    )
    with pytest.raises(ConfigError, match=r"few has 3 classes and camvid.* 11; both parents and all images"):
        launch(recipe, composed(tmp_path, weights, data_root, f"b.name={tmp_path / 'few.safetensors'}", "b.size=64"))
    assert not list(tmp_path.rglob("matching.json"))


@pytest.mark.slow
def test_a_search_for_offspring_that_label_pixels(tmp_path, weights, data_root, monkeypatch, capsys):
    few = ["budget=8", "search.population=4", "matching.max_matches=3", "matching.granularity=op"]
    few += ["method=stitch_distill", "engine.max_steps=2", "batch_size=2", "num_saved=1"]
    few += ["method.init_images=4", "dataset.fraction=0.3", "racing_alpha=0.01"]
    launch(recipe, composed(tmp_path, weights, data_root, *few))
    (row,) = read_rows(tmp_path / "o")
    assert row.status == "ok" and row.cell["performance"] == "miou" and row.metrics["requests"] == 8
    assert row.metrics["test_miou_a"] == row.series["reference_test_miou"][0]
    (folder,) = (tmp_path / "o" / "stitch").iterdir()
    assert {file.name for file in (folder / "plots").iterdir()} >= {"fronts.png", "stitch_errors.png"}
    assert len(list((folder / "pictures").iterdir())) == 6
    file = folder / "offspring" / "0.safetensors"
    card = stitch.read_card(file)
    assert card["metrics"]["test_miou"] == row.series["front_test_miou"][row.series["saved"][0]]
    same = export_network(stitch.load(file), tmp_path / "offspring.pt2", 64, {})
    assert same.agreement == 100 and same.difference < 1e-5
    image = data_root / "camvid_small" / "test" / "0001TP_008550.jpg"
    words = ["--model", str(file), "--masks", str(tmp_path / "masks"), "--device", "cpu", str(image)]
    monkeypatch.setattr("sys.argv", ["predict.py", *words])
    predict.main()
    mask = np.asarray(Image.open(tmp_path / "masks" / f"{image.stem}.png"))
    assert mask.shape == Image.open(image).size[::-1] and mask.max() < 11


@pytest.mark.slow
def test_two_steps_of_the_papers_pair(tmp_path):
    """DeepLabV3 on MobileNetV3 and ResNet-50 with random weights, on noise of 65 px."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 12)):
        for kind, shape, top in (("images", (65, 65, 3), 256), ("masks", (65, 65), 3)):
            (tmp_path / f"data/{split}/{kind}").mkdir(parents=True)
            for k in range(count):
                noise = rng.integers(0, top, shape, dtype=np.uint8)
                Image.fromarray(noise).save(tmp_path / f"data/{split}/{kind}/{k}.png")
    (tmp_path / "data/classes.txt").write_text("a\nb\nc\n")
    words = [f"{root}_root={tmp_path / root}" for root in ("data", "cache", "output", "weights")]
    for side, name in zip("ab", ("deeplabv3_mobilenet_v3_large", "deeplabv3_resnet50"), strict=True):
        node = {"name": name, "architecture": f"torchvision:{name}", "weights": None, "size": 65}
        models.save(models.build(node, classes=3), tmp_path / "weights" / f"{name}.safetensors", {})
        words += [f"{side}.name={name}", f"{side}.size=65"]
    words += ["dataset=masks", "loader.workers=0", "logger=none", "device=cpu", "search=ga_familial", "seed=0"]
    words += ["search_fraction=0.5", "batch_size=2", "engine.max_steps=2", "budget=8", "search.population=4"]
    words += ["matching.max_matches=5", "num_saved=0"]
    launch(recipe, composing.composed("stitch", "experiment=stitch/voc_segmentation", *words))
    (row,) = read_rows(tmp_path / "output")
    assert row.status == "ok" and row.metrics["requests"] == 8 and row.metrics["pairs"] == 5
    assert row.cell["method"] == "stitch" and 0 <= row.metrics["test_miou_a"] <= 100
