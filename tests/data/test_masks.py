"""Images with masks: readers, joint augmentation, padding, what is ignored, and bad input."""

import numpy as np
import pytest
import torch
from PIL import Image

from recombine.core.counter_rng import uniform
from recombine.core.errors import ConfigError
from recombine.core.labels import IGNORE
from recombine.data import open_data
from recombine.data.augment import ColorDistortion, Operation

RED = 200


@pytest.fixture
def folder(tmp_path):
    """images/, masks/ and classes.txt of 12 pictures of two sizes, whose red channel tells the label: `red_of`."""
    rng = np.random.default_rng(0)
    for name in ("images", "masks"):
        (tmp_path / "set" / name).mkdir(parents=True)
    (tmp_path / "set/classes.txt").write_text("road\ncar\nsky\n")
    for k in range(12):
        height, width = (40, 64) if k % 2 else (56, 48)
        coarse = rng.choice([0, 1, 2, IGNORE], (height // 8, width // 8)).astype(np.uint8)
        mask = coarse.repeat(8, 0).repeat(8, 1)
        image = np.zeros((height, width, 3), np.uint8)
        image[..., 0] = np.where(mask == IGNORE, RED, 20 * mask + 60)
        Image.fromarray(image).save(tmp_path / f"set/images/{k:02}.png")
        Image.fromarray(mask).save(tmp_path / f"set/masks/{k:02}.png")
    return tmp_path / "set"


def opened(folder, kind="torch", **options):
    node = {"name": "mine", "source": "masks", "folder": ".", **options}
    where = {"data_root": folder, "cache_root": folder.parent / "cache", "seed": 0, "device": "cpu"}
    return open_data(node, loader={"kind": kind, "workers": 0}, **where)


def read(path):
    with Image.open(path) as image:
        return np.array(image)


def red_of(labels):
    """What the red channel of `folder` holds for labels."""
    return torch.where(labels == IGNORE, RED, 20 * labels + 60)


def test_whole_images_are_padded_and_what_is_beside_them_is_ignored(folder):
    data = opened(folder)
    assert (data.task, data.classes, data.class_names) == ("segmentation", 3, ["road", "car", "sky"])
    assert (len(data.indices("train")), len(data.indices("test"))) == (10, 2)
    loader = data.loader("train", 4, train=False, size=64)
    for batch in loader.epoch(0):
        assert batch.images.shape[1:] == (3, 64, 64) and batch.labels.shape[1:] == (64, 64)
        for position, image, labels in zip(batch.index, batch.images, batch.labels, strict=True):
            path = data.split("train").samples.paths[position]
            stored = read(path)
            if stored.shape[0] > stored.shape[1]:
                continue  # resized
            mask = read(path.replace("/images/", "/masks/"))
            assert np.array_equal(labels[12:52], mask) and np.array_equal(image[0, 12:52], stored[..., 0])
            beside = torch.cat([labels[:12], labels[52:]])
            assert (beside == IGNORE).all() and (image[:, :12] == 0).all() and (image[:, 52:] == 0).all()


@pytest.mark.parametrize("augment", ["flip", "flip_crop", "scale_crop", "crop_resize", "rotate"])
def test_images_and_masks_move_together(folder, augment):
    rotation = [{"_target_": "recombine.data.augment.Rotation", "degrees": 30}]
    data = opened(folder, augment=rotation if augment == "rotate" else augment)
    agree, seen = [], 0
    for epoch in range(3):
        for batch in data.loader("train", 5, train=True, size=56).epoch(epoch):
            shown = batch.images[:, 0] > 0
            assert (batch.labels[~shown] == IGNORE).all()
            agree.append((batch.images[:, 0] == red_of(batch.labels))[shown].float().mean())
            seen += len(batch.images)
    assert seen == 30 and len({str(b.labels.sum()) for b in data.loader("train", 5, train=True, size=56).epoch(0)}) > 1
    # at the borders of classes the resized image has mixed colours and the mask has not
    assert torch.stack(agree).mean() > 0.75  # and about 0.3 for others


def test_colours_do_not_change_labels(folder):
    plain = next(opened(folder).loader("train", 5, train=True, size=56).epoch(0))
    node = [{"_target_": "recombine.data.augment.ColorDistortion", "p": 1.0}]
    changed = next(opened(folder, augment=node).loader("train", 5, train=True, size=56).epoch(0))
    assert torch.equal(plain.labels, changed.labels) and not torch.equal(plain.images, changed.images)
    draws = [uniform(0, 0, plain.index, 32 + k) for k in range(5)]
    assert torch.equal(ColorDistortion(p=1.0)(plain.images, lambda k: draws[k]), changed.images)


class Silent(Operation):
    """Does not say whether it moves pixels."""

    def __call__(self, images, draw):
        return images


def test_an_operation_has_to_say_whether_it_moves_pixels(folder):
    data = opened(folder, augment=[{"_target_": f"{__name__}.Silent"}])
    with pytest.raises(ConfigError, match="Silent has to say moves_pixels"):
        next(data.loader("train", 5, train=True, size=56).epoch(0))


def test_the_device_loader_gives_the_same_batches(folder):
    for train, augment in ((False, "none"), (True, "flip_crop")):
        batches = [
            list(opened(folder, kind, augment=augment).loader("train", 5, train=train, size=48).epoch(1))
            for kind in ("torch", "device", "ffcv")
        ]
        for one, *others in zip(*batches, strict=True):
            assert all(torch.equal(a, b) for other in others for a, b in zip(one, other, strict=True))


def test_other_labels_and_left_out_classes(folder):
    before = next(opened(folder).loader("train", 5, train=False, size=64).epoch(0)).labels
    data = opened(folder, class_subset=["sky", "road"])
    after = next(data.loader("train", 5, train=False, size=64).epoch(0)).labels
    assert data.class_names == ["sky", "road"]
    for old, new in ((0, 1), (1, IGNORE), (2, 0), (IGNORE, IGNORE)):
        assert (after[before == old] == new).all()


def test_a_validation_part_and_folders_of_splits(folder):
    data = opened(folder, val_fraction=0.2)
    parts = [set(data.indices(split).tolist()) for split in ("train", "val")]
    assert [len(part) for part in parts] == [8, 2] and not parts[0] & parts[1]
    for split in ("train", "val"):
        for name in ("images", "masks"):
            (folder / split / name).mkdir(parents=True)
    for k in range(12):
        for name in ("images", "masks"):
            path = folder / name / f"{k:02}.png"
            path.rename(folder / ("val" if k < 3 else "train") / name / path.name)
    data = opened(folder)
    assert {split: len(data.indices(split)) for split in data.splits} == {"train": 9, "test": 3}


def spoil(folder, what):
    mask = folder / "masks/03.png"
    if what == "absent":
        mask.unlink()
    elif what == "size":
        Image.fromarray(np.zeros((40, 50), np.uint8)).save(mask)
    elif what == "label":
        Image.fromarray(np.full((40, 64), 7, np.uint8)).save(mask)
    elif what == "colour":
        Image.fromarray(np.zeros((40, 64, 3), np.uint8)).save(mask)
    elif what == "names":
        (folder / "classes.txt").unlink()


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("absent", r"1 of 12 images have no mask: .*masks/03.png is needed"),
        ("size", r"mask .*03.png is 50 x 40 px and its image 64 x 40: save it"),
        ("label", r"mask .*03.png has label 7: the 3 classes are 0 to 2, and 255 is for pixels to be left out"),
        ("colour", r"mask .*03.png has mode RGB: class numbers"),
        ("names", r"masks: nothing found .* put there classes.txt"),
    ],
)
def test_bad_masks_are_named_in_one_sentence(folder, what, message):
    opened(folder).split("train")
    spoil(folder, what)
    with pytest.raises(ConfigError, match=message) as error:
        opened(folder).split("train")
    assert len(error.value.problems) == 1


def test_rows_know_the_data_by_a_fingerprint_that_masks_change(folder):
    name, digest = opened(folder).name, opened(folder).loader("train", 5, train=False, size=48).digest
    Image.fromarray(np.zeros((40, 64), np.uint8)).save(folder / "masks/03.png")
    assert name.startswith("mine-") and opened(folder).name != name
    assert opened(folder).loader("train", 5, train=False, size=48).digest != digest


def test_voc_and_camvid_as_they_lie_on_disk(tmp_path, data_root):
    place = tmp_path / "VOCdevkit/VOC2012"
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (place / name).mkdir(parents=True)
    mask = Image.fromarray(np.array([[0, 1], [20, 255]], np.uint8).repeat(8, 0).repeat(8, 1), "P")
    mask.putpalette(list(range(256)) * 3)
    for split, name in (("train", "2007_000001"), ("val", "2007_000002")):
        Image.new("RGB", (16, 16)).save(place / f"JPEGImages/{name}.jpg")
        mask.save(place / f"SegmentationClass/{name}.png")
        (place / f"ImageSets/Segmentation/{split}.txt").write_text(f"{name}\n")
    where = {"loader": {"kind": "torch", "workers": 0}, "cache_root": tmp_path / "cache", "seed": 0, "device": "cpu"}
    voc = open_data({"name": "voc_segmentation", "folder": "."}, data_root=tmp_path, **where)
    assert (voc.classes, voc.class_names[0], voc.class_names[20]) == (21, "background", "tvmonitor")
    labels = next(voc.loader("test", 1, train=False, size=16).epoch(0)).labels
    assert torch.equal(labels[0, ::8, ::8], torch.tensor([[0, 1], [20, 255]]))
    camvid = open_data({"name": "camvid", "folder": "."}, data_root=data_root / "camvid_small", **where)
    assert [len(camvid.indices(split)) for split in ("train", "test")] == [24, 12]
    batch = next(camvid.loader("test", 2, train=False, size=480).epoch(0))
    raw = read(data_root / "camvid_small/testannot/0001TP_008550.png")
    assert np.array_equal(batch.labels[0, 60:420], np.where(raw == 11, IGNORE, raw))
