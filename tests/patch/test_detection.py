"""Patches in the encoder of a detector: losses of torchvision's own network, files, real pictures of VOC."""

import json
import shutil
from functools import partial

import numpy as np
import pytest
import torch
from torchvision.models.detection import FasterRCNN

import recombine
from recombine import models
from recombine.core.errors import ConfigError
from recombine.core.results import read_rows
from recombine.core.types import Batch
from recombine.data.boxes import voc_detection
from recombine.data.layouts import VOC_CLASSES
from recombine.models.dense import encoder_of
from recombine.models.freeze import digest
from recombine.patch import recipe
from recombine.patch.adapters import NormAdaptation
from recombine.patch.delta import Delta
from recombine.patch.dense.serialization import save_dense
from recombine.patch.dense.training import DenseTraining, patch_encoder
from recombine.patch.patched import HeadOnly
from recombine.run.launch import check, launch
from tests import composing

NODE = {"name": "small", "architecture": "faster_rcnn", "backbone": "mobilenetv2_035", "weights": None, "size": 64}
NODE |= {"mean": [0.5] * 3, "std": [0.5] * 3, "channels": 16, "hidden": 32, "rois": 16, "anchor": 3}
METHODS = {"fc": HeadOnly, "delta": partial(Delta, modules="all"), "bn_adapt": NormAdaptation}
SMALL = ["loader.workers=0", "logger=none", "device=cpu", "batch_size=4", "++model.channels=16", "++model.hidden=32"]


def batch(count=2, size=64):
    torch.manual_seed(0)
    boxes = torch.full((count, 3, 6), -1.0)
    boxes[:, 0] = torch.tensor([4, 8, 40, 50, 1, 0])
    boxes[:, 1] = torch.tensor([20, 10, 60, 30, 2, 1])  # does not count
    return Batch(torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8), boxes, torch.arange(count))


@pytest.fixture(scope="module")
def network():
    return models.build(NODE, classes=3)


def test_losses_and_detections_are_those_of_torchvisions_own_network(network):
    """The same modules inside torchvision's class, with its resizing and normalising switched off."""
    net = network.net
    whole = FasterRCNN(net.backbone, num_classes=4, min_size=64, max_size=64, image_mean=[0.0] * 3, image_std=[1.0] * 3)
    whole.rpn, whole.roi_heads = net.rpn, net.roi_heads
    images, boxes, _ = batch()
    ready = network.preprocess(images)
    targets = [{"boxes": each[:1, :4], "labels": each[:1, 4].long() + 1} for each in boxes]
    found = []
    for losses, draws in (
        (lambda: whole(list(ready), targets), 0),
        (lambda: network.losses(images, boxes), len(images)),
    ):
        whole.train()
        encoder_of(net).eval()
        torch.manual_seed(1)  # both draw the regions they train on; torchvision's draws a size for each image too
        torch.rand(draws)
        found.append({key: float(value.detach()) for key, value in losses().items()})
    assert found[0] == pytest.approx(found[1], rel=1e-5) and len(found[0]) == 4
    with torch.no_grad():
        expected, found = whole.eval()(list(ready)), network.eval()(images)
    for each, rows in zip(expected, found, strict=True):
        count = len(each["boxes"])
        torch.testing.assert_close(rows[:count, :4], each["boxes"])
        torch.testing.assert_close(rows[:count, 4], each["scores"])
        assert torch.equal(rows[:count, 5].long(), each["labels"] - 1) and (rows[count:, 5] == -1).all()


@pytest.mark.parametrize("name", METHODS)
def test_patch_and_heads_train_and_the_encoder_stays(name, tmp_path):
    model = models.build(NODE, classes=3)
    before = digest(encoder_of(model.net))
    patch_encoder(model, METHODS[name], "task", 0)
    method = DenseTraining(model).train()
    state = {key: value.clone() for key, value in method.state_dict().items()}
    optimizer = torch.optim.SGD(method.parameter_groups(), 0.01)
    for _ in range(2):
        method(batch()).loss.backward()
        assert not method.without_gradient(method.parameters())
        optimizer.step()
        optimizer.zero_grad()
    changed = {key for key, value in method.state_dict().items() if not torch.equal(value, state[key])}
    inside = "net.net.backbone.body."
    assert not [key for key in changed if key.startswith(inside) and not key.startswith(f"{inside}patch.")]
    assert bool([key for key in changed if key.startswith(f"{inside}patch.")]) == (name != "fc")
    for part in ("backbone.fpn", "rpn.head", "roi_heads.box_predictor"):
        assert [key for key in changed if key.startswith(f"net.net.{part}")]

    path = save_dense(model.eval(), tmp_path / "task.safetensors", name="task", class_names=["a", "b", "c"])
    base = models.build(NODE, classes=5)
    network = recombine.attach(base, path)
    images = batch().images
    with torch.no_grad():
        torch.testing.assert_close(network(images, "task"), model(images), rtol=0, atol=0)
    assert network.restore() is base and digest(encoder_of(base.net)) == before
    with pytest.raises(ConfigError, match="is for the backbone of a network for detection, such as"):
        recombine.attach(models.build("resnet8", classes=3), path)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("method=finetune", "protocol=detection trains heads with a patch"),
        ("tasks=[digits]", "has a label for each image, and here boxes around objects is needed"),
        ("tasks=[camvid]", "has a label for every pixel, and here boxes around objects is needed"),
        ("model=resnet8", "classifies images, and the data have boxes around objects"),
        ("model.backbone_weights=null", "protocol=detection freezes the backbone"),
        ("model.backbone=vit_tiny_patch16_224", "has maps at strides (16, 16, 16, 16), and 4, 8, 16 and 32 are needed"),
    ],
)
def test_what_does_not_fit_is_said_first(data_root, override, message):
    place = {"data": data_root / "voc_small", "weights": data_root / "weights/imagenet"}
    roots = [f"{key}_root={value}" for key, value in place.items()]
    cfg = composing.composed("patch", "experiment=patch/voc_detection", *roots, override)
    problems = check(recipe, cfg)
    assert any(message in text for text in problems) if message else not problems
    if message is None:
        with pytest.raises(ConfigError, match=r"model.backbone=vit_tiny_patch16_224"):
            models.build({**NODE, "backbone": "vit_tiny_patch16_224"}, classes=3)


@pytest.fixture
def pictures(tmp_path, data_root):
    """A folder of six pictures of VOC, the same ones for training and testing, as COCO's format has them."""
    source = voc_detection(data_root / "voc_small/VOCdevkit/VOC2007", "trainval", "test", VOC_CLASSES).splits["train"]()
    count = np.array([(boxes[:, 5] == 0).sum() for boxes in source.boxes])
    chosen = np.flatnonzero(count > 0)[np.argsort(count[count > 0], kind="stable")][:6]
    found = {"images": [], "annotations": [], "categories": [{"id": k, "name": n} for k, n in enumerate(VOC_CLASSES)]}
    for split in ("train", "test"):
        (tmp_path / "data" / split / "images").mkdir(parents=True)
    for number, i in enumerate(chosen):
        height, width = map(int, source.sizes[i])
        found["images"].append({"id": number, "file_name": f"{number}.jpg", "height": height, "width": width})
        for left, top, right, bottom, label, difficult in source.boxes[i].tolist():
            box = {"image_id": number, "category_id": int(label), "iscrowd": int(difficult)}
            found["annotations"].append({**box, "bbox": [left, top, right - left, bottom - top]})
        for split in ("train", "test"):
            shutil.copy(source.paths[i], tmp_path / "data" / split / "images" / f"{number}.jpg")
    for split in ("train", "test"):
        (tmp_path / "data" / split / "annotations.json").write_text(json.dumps(found))
    return tmp_path


def launched(folder, *words):
    roots = [f"{root}_root={folder / root}" for root in ("data", "cache", "output", "weights")]
    launch(recipe, composing.composed("patch", *roots, *SMALL, "tasks=[{name:six,dataset:boxes}]", *words))
    return read_rows(folder / "output")


@pytest.mark.parametrize("experiment", ["voc_detection", "table7_detection"])
def test_two_steps(pictures, experiment):
    source = models.build({"name": "timm:mobilenetv2_035", "weights": None, "size": 32}, classes=3)
    models.save(source, pictures / "weights/source.safetensors", {})
    small = ["model.backbone=mobilenetv2_035", "model.backbone_weights=source", "model.size=64", "++model.rois=16"]
    (row,) = launched(pictures, f"experiment=patch/{experiment}", *small, "engine.max_steps=2", "method=delta_4")
    assert row.status == "ok" and 0 <= row.metrics["map_voc07"] <= 100 and row.metrics["trainable_parameters"] > 0
    assert row.cell["protocol"] == "detection" and row.cell["task"] == "six" and row.metrics["steps"] == 2
    card = recombine.patch.read_card(next(pictures.rglob("patches/six.safetensors")))
    assert card["head"] == "detection" and card["class_names"] == list(VOC_CLASSES)
    assert len(list(pictures.rglob("pictures/*.png"))) == 6


@pytest.mark.slow
def test_six_pictures_are_learnt_by_heart(pictures, data_root):
    shutil.copytree(data_root / "weights/imagenet", pictures / "weights")
    words = ["experiment=patch/voc_detection", "model.size=160", "++model.channels=64", "++model.hidden=128"]
    words += ["model.rois=64", "batch_size=6", "task.augment=none", "engine.epochs=150", "method=bn_adapt"]
    words += ["optimizer.lr=0.002", "optimizer.weight_decay=0"]
    (row,) = launched(pictures, *words)
    assert row.metrics["map_voc07"] > 90 and row.metrics["map_coco"] > 40
