"""Boxes around objects: VOC's and COCO's files, and boxes that stay on their objects through every crop."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from recombine import data as datasets
from recombine.core.errors import ConfigError
from recombine.data import registry
from recombine.data.boxes import BoxReader, seen_boxes, voc_detection
from recombine.data.checks import check_node
from recombine.data.fingerprint import fingerprint
from recombine.data.layouts import VOC_CLASSES

SIZES = [(60, 100), (90, 50), (64, 64)]
CROWDS = (3, 6, 9, 11)


def write(folder, change=lambda found: None):
    """Grey pictures with one white rectangle each, whose box is in annotations.json; one without a box."""
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    found = {"images": [], "annotations": [], "categories": [{"id": 7, "name": "dark"}, {"id": 3, "name": "white"}]}
    for k in range(12):
        height, width = SIZES[k % 3]
        pixels = np.full((height, width, 3), 100, np.uint8)
        left, top = int(rng.integers(5, width // 2)), int(rng.integers(5, height // 2))
        wide, high = int(rng.integers(12, width // 2)), int(rng.integers(12, height // 2))
        found["images"].append({"id": k, "file_name": f"{k}.png", "height": height, "width": width})
        if k:
            pixels[top : top + high, left : left + wide] = 255
            box = {"image_id": k, "category_id": 3, "bbox": [left, top, wide, high]}
            found["annotations"].append({**box, "iscrowd": int(k in CROWDS)})
        Image.fromarray(pixels).save(folder / f"images/{k}.png")
    change(found)
    (folder / "annotations.json").write_text(json.dumps(found))
    return folder


def opened(folder, cache, kind="torch", **given):
    node = registry.node("boxes", {"folder": ".", "name": "mine", **given})
    return datasets.open_data(
        node, loader={"kind": kind, "workers": 0}, data_root=folder, cache_root=cache, seed=0, device="cpu"
    )


@pytest.mark.parametrize("augment", [False, "scale_crop"])
def test_boxes_are_where_the_objects_are_seen(tmp_path, augment):
    """In every image of three epochs the white pixels fill the box, to a pixel."""
    data = opened(write(tmp_path / "data"), tmp_path)
    assert data.task == "detection" and data.class_names == ["white", "dark"] and data.splits == ("train", "test")
    loader = data.loader("train", 5, train=True, size=80, augment=augment)
    paths, seen = data.split("train").samples.paths, 0
    crowds = 0
    for epoch in range(3):
        for images, boxes, index in loader.epoch(epoch):
            assert boxes.shape == (5, 1, 6) and boxes.dtype.is_floating_point
            for image, (box,), number in zip(images, boxes.numpy(), index.tolist(), strict=True):
                white = np.argwhere(image[0].numpy() > 178)  # half of a pixel at the border
                if box[4] < 0:
                    continue
                assert (box[4], box[5]) == (0, int(Path(paths[number]).stem) in CROWDS)
                crowds += int(box[5])
                top, left, bottom, right = (*white.min(0), *(white.max(0) + 1))
                np.testing.assert_allclose(box[:4], [left, top, right, bottom], atol=1.01)
                seen += 1
    assert seen > 12 and crowds > 3
    data.close()


def test_mirrored_and_cut_boxes_by_hand():
    boxes = np.array([[8, 4, 24, 20, 2, 0], [60, 0, 80, 40, 1, 1]], np.float32)
    assert seen_boxes(boxes, np.array([0, 0, 40, 40, 0]), 20).tolist() == [[4, 2, 12, 10, 2, 0]], (
        "its centre is outside"
    )
    assert seen_boxes(boxes, np.array([0, 0, 40, 40, 1]), 20).tolist() == [[8, 2, 16, 10, 2, 0]]
    assert seen_boxes(boxes, np.array([-20, 12, 80, 80, 0]), 40).tolist() == [
        [0, 12, 6, 20, 2, 0],
        [24, 10, 34, 30, 1, 1],
    ]


def test_voc_counts_pixels_from_one(data_root):
    place = data_root / "voc_small/VOCdevkit/VOC2007"
    samples = voc_detection(place, "trainval", "test", VOC_CLASSES).splits["test"]()
    where = next(i for i, path in enumerate(samples.paths) if path.endswith("000352.jpg"))
    assert samples.sizes[where].tolist() == [375, 500] and len(samples.boxes[where]) == 5
    assert samples.boxes[where][0].tolist() == [32, 67, 149, 247, VOC_CLASSES.index("person"), 0]
    assert samples.boxes[where][4].tolist() == [11, 99, 500, 375, VOC_CLASSES.index("sofa"), 1]
    assert samples.most == max(map(len, samples.boxes))


def test_boxes_are_cut_at_the_border_and_those_without_extent_left_out():
    boxes = np.array([[-5, 2, 30, 9, 0, 0], [3, 3, 3, 8, 0, 0], [50, 5, 60, 9, 1, 0]], np.float32)
    (found,) = BoxReader(["a.png"], [boxes], [(10, 20)], ".", []).boxes
    assert found.tolist() == [[0, 2, 20, 9, 0, 0]]


def test_other_classes_and_other_boxes_are_other_data(tmp_path):
    folder = write(tmp_path / "data")
    data = opened(folder, tmp_path, class_subset=["dark"])
    batch = next(data.loader("train", 5, train=True, size=32).epoch(0))
    assert data.classes == 1 and (batch.labels[..., 4] == -1).all(), "no white ones"
    samples = data.split("train").samples
    before = fingerprint(samples, data.class_names, None)
    text = (folder / "annotations.json").read_text()
    (folder / "annotations.json").write_text(text.replace('"iscrowd": 1', '"iscrowd": 0'))
    assert fingerprint(opened(folder, tmp_path).split("train").samples, data.class_names, None) != before


@pytest.mark.parametrize("augment", [["HorizontalFlip"], ["PadCrop"], ["Rotation"]])
def test_what_moves_pixels_but_no_boxes_is_refused(tmp_path, augment):
    nodes = [{"_target_": f"recombine.data.augment.{name}"} for name in augment]
    data = opened(write(tmp_path / "data"), tmp_path, augment=nodes)
    with pytest.raises(ConfigError, match=rf"{augment[0]} moves no boxes: dataset.augment=scale_crop"):
        data.loader("train", 5, train=True, size=32)


def _other_size(found):
    found["images"][4]["width"] += 1


def _no_image(found):
    found["images"][4]["file_name"] = "absent.png"


def _unknown(found):
    found["annotations"][2]["category_id"] = 99


def _no_lists(found):
    del found["annotations"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_other_size, r"4.png is 50 x 90 px, and its annotation says 51 x 90: its boxes do not fit"),
        (_no_image, r"1 of 12 images of .* are absent: .*absent.png"),
        (_unknown, r"annotations.json: an image or annotation lacks, or names something unknown: 99"),
        (_no_lists, r"is not as COCO's annotations are, with lists images, annotations and categories"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, change, message):
    folder = write(tmp_path / "data", change)
    with pytest.raises(ConfigError, match=message):
        opened(folder, tmp_path).loader("train", 2, train=True, size=32)


def test_splits_and_absent_data(tmp_path):
    for split in ("train", "val"):
        write(tmp_path / "data" / split)
    data = opened(tmp_path / "data", tmp_path)
    assert data.splits == ("train", "test") and len(data.indices("test")) == 12, "val is the test split"
    problems = check_node(registry.node("coco"), tmp_path, "task", tasks=("detection",))
    assert any("put there annotations/instances_train2017.json" in text for text in problems)
