"""Training a detector on a folder of images with boxes."""

import json

import pytest
import torch

from recombine import models
from recombine.core.results import read_rows
from recombine.pretrain import recipe
from recombine.run.launch import check, launch
from tests import composing
from tests.data.test_boxes import write

WORDS = ["model=faster_rcnn_mobilenetv2_tv", "model.backbone=mobilenetv2_035", "model.backbone_weights=start"]
WORDS += ["model.size=64", "model.channels=16", "model.hidden=32", "model.rois=16", "dataset=boxes", "batch_size=4"]
WORDS += ["engine.max_steps=2", "loader=torch", "loader.workers=0", "logger=none", "device=cpu"]


def composed(folder, *words):
    roots = [f"{root}_root={folder / root}" for root in ("data", "weights", "cache", "output")]
    return composing.composed("pretrain", *roots, *WORDS, *words)


@pytest.mark.parametrize("freeze", [False, True])
def test_a_run_gives_a_row_a_network_and_pictures(tmp_path, freeze):
    write(tmp_path / "data")
    start = models.build({"name": "timm:mobilenetv2_035", "weights": None, "size": 32}, classes=3)
    models.save(start, tmp_path / "weights/start.safetensors", {})
    launch(recipe, composed(tmp_path, f"freeze={freeze}"))
    (row,) = read_rows(tmp_path / "output")
    assert 0 <= row.metrics["map_voc07"] <= 100 and row.metrics["macs"] > 0
    assert row.cell["trained"] == ("classifier" if freeze else "all") and "accuracy" not in row.metrics
    (folder,) = (tmp_path / "output/pretrain").iterdir()
    assert json.loads((folder / "labels.json").read_text()) == ["white", "dark"]
    assert len(list(folder.glob("pictures/*.png"))) == 2
    saved = next((tmp_path / "weights").glob("faster*.safetensors"))
    again = models.build(saved.stem, weights_root=tmp_path / "weights")
    kept = [
        torch.equal(value, start.net.state_dict()[key]) for key, value in again.net.backbone.body.state_dict().items()
    ]
    assert all(kept) == freeze and again.net.classes == 2 and again.class_names == ["white", "dark"]
    assert recipe.objective(composed(tmp_path)) == "map_voc07"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model=cnn"], "model cnn classifies images, and the data have boxes around objects: model=faster_rcnn"),
        (["dataset=digits"], "finds boxes of objects, and the data have a label for each image: dataset=voc_detection"),
    ],
)
def test_networks_and_data_of_other_tasks_are_told(tmp_path, words, message):
    write(tmp_path / "data")
    roots = [f"{root}_root={tmp_path / root}" for root in ("data", "weights", "cache", "output")]
    cfg = composing.composed("pretrain", *roots, "model=faster_rcnn_resnet18", "dataset=boxes", *words)
    assert any(message in text for text in check(recipe, cfg))
