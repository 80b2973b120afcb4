"""Sets found on disk in their usual layouts, complete, partial or absent."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import shutil
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import StratifiedShuffleSplit
from torchvision import datasets

from recombine.core.errors import ConfigError
from recombine.data.sources import DATASETS, open_source
from recombine.data.storage import decode


def source(name, root, folder=""):
    return open_source(name, folder or name, root, False)


def image_file(path, colour=(9, 9, 9), size=(20, 20)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, tuple(colour)).save(path)


def test_digits_are_those_of_scikit_learn(tmp_path):
    found, real = source("digits", tmp_path), load_digits()
    both = [found.samples(name) for name in ("train", "test")]
    images = np.concatenate([samples.images for samples in both])
    labels = np.concatenate([samples.labels for samples in both])
    assert len(images) == len(real.target) == 1797
    ours = sorted((int(y), x.tobytes()) for x, y in zip(images, labels, strict=True))
    theirs = np.rint(real.images * 255 / 16).astype(np.uint8)
    assert ours == sorted((int(y), x.tobytes()) for x, y in zip(theirs, real.target, strict=True))
    splitter = StratifiedShuffleSplit(n_splits=1, test_size=1 / 6, random_state=123)
    _, held_out = next(splitter.split(real.data, real.target))
    assert np.array_equal(both[1].images, theirs[np.sort(held_out)]), "always the same sixth"


@pytest.mark.parametrize(
    ("name", "folder", "train", "test", "classes"),
    [
        ("mnist", "", 60000, 10000, 10),
        ("usps", "", 7291, 2007, 10),
        ("cifar10", "", 25000, 10000, 10),
        ("cifar100", "cifar100_small", 3000, 3000, 100),
        ("voc", "voc_small", 33, 18, 20),
        ("omniglot", "omniglot_small", 4033, 807, 242),
        ("parquet", "imagenette160", 1200, 1000, 10),
    ],
)
def test_real_sets_are_found(data_root, name, folder, train, test, classes):
    found = source(name, data_root, folder)
    assert (len(found.samples("train")), len(found.samples("test"))) == (train, test)
    assert len(found.class_names) == classes
    assert found.samples("train").labels.min() >= 0 and found.samples("train").labels.max() < classes


def test_partial_sets_are_said_to_be_partial(data_root):
    assert source("cifar10", data_root).partial("train") == "cifar10: train has 25,000 of 50,000 images"
    assert source("cifar10", data_root).partial("test") is None
    assert "242 of 1623 classes" in source("omniglot", data_root, "omniglot_small").partial("test")


def test_mnist_equals_torchvisions_reading(data_root, tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for path in (data_root / "MNIST" / "raw").glob("t10k*.gz"):
        (raw / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
        (raw / path.stem.replace("t10k", "train")).write_bytes(b"")  # torchvision insists on all four files
    theirs = datasets.MNIST(str(tmp_path), train=False)
    ours = source("mnist", data_root).samples("test")
    assert np.array_equal(ours.images, theirs.data.numpy())
    assert np.array_equal(ours.labels, theirs.targets.numpy())


def test_truncated_idx_file_is_named(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    (raw / "train-images-idx3-ubyte").write_bytes(bytes([0, 0, 8, 3]) + np.array([2, 4, 4], ">i4").tobytes() + b"short")
    with pytest.raises(ConfigError, match="train-images-idx3-ubyte is truncated"):
        source("mnist", tmp_path).samples("train")


def test_cifar_in_torchvisions_layout(tmp_path, monkeypatch):
    folder, rng = tmp_path / "cifar-10-batches-py", np.random.default_rng(0)
    folder.mkdir()
    names = [f"data_batch_{k}" for k in range(1, 6)] + ["test_batch"]
    pixels = {name: rng.integers(0, 256, (4, 3072), dtype=np.uint8) for name in names}
    for name in names:
        (folder / name).write_bytes(pickle.dumps({"data": pixels[name], "labels": [0, 1, 2, 9]}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    samples = source("cifar10", tmp_path).samples("train")
    assert len(samples) == 20
    assert np.array_equal(samples[0], pixels["data_batch_1"][0].reshape(3, 32, 32).transpose(1, 2, 0))


@pytest.mark.parametrize("name", ["dtd", "fgvc_aircraft", "gtsrb"])
def test_file_sets_in_torchvisions_layout(tmp_path, name):
    if name == "dtd":
        root = tmp_path / "dtd/dtd"
        for split in ("train", "val", "test"):
            image_file(root / f"images/banded/{split}.png")
            (root / "labels").mkdir(exist_ok=True)
            (root / f"labels/{split}1.txt").write_text(f"banded/{split}.png\n")
    elif name == "fgvc_aircraft":
        root = tmp_path / "fgvc-aircraft-2013b/data"
        (root / "images").mkdir(parents=True)
        (root / "variants.txt").write_text("707-320\nA300\n")
        for split in ("trainval", "test"):
            image_file(root / f"images/{split}0.jpg")
            (root / f"images_variant_{split}.txt").write_text(f"{split}0 A300\n")
    else:
        root = tmp_path / "gtsrb/GTSRB"
        image_file(root / "Training/00000/00000_00000.ppm")
        image_file(root / "Final_Test/Images/00000.ppm")
        (root.parent / "GT-final_test.csv").write_text("Filename;ClassId\n00000.ppm;7\n")
    found = source(name, tmp_path)
    assert len(found.samples("train")) == (2 if name == "dtd" else 1)
    assert len(found.samples("test")) == 1
    assert found.samples("test").labels.tolist() == {"dtd": [0], "fgvc_aircraft": [1], "gtsrb": [7]}[name]
    assert decode(found.samples("test")[0], "").shape == (20, 20, 3)
    assert "of" in found.partial("test")


def test_lists_of_cub_tiny_imagenet_and_infograph(tmp_path):
    cub = tmp_path / "CUB_200_2011"
    for k in (1, 2, 3):
        image_file(cub / f"images/00{k}.Bird/{k}.jpg")
    (cub / "images.txt").write_text("1 001.Bird/1.jpg\n2 002.Bird/2.jpg\n3 003.Bird/3.jpg\n")
    (cub / "image_class_labels.txt").write_text("1 1\n2 2\n3 3\n")
    (cub / "train_test_split.txt").write_text("1 1\n2 0\n3 1\n")
    (cub / "classes.txt").write_text("1 001.Albatross\n2 002.Auklet\n3 003.Jay\n")
    found = source("cub", tmp_path)
    assert found.samples("train").labels.tolist() == [0, 2]
    assert found.samples("test").labels.tolist() == [1]
    assert found.class_names == ["Albatross", "Auklet", "Jay"]

    tiny = tmp_path / "tiny-imagenet-200"
    for name in ("n02", "n01"):
        image_file(tiny / f"train/{name}/images/{name}_0.JPEG")
    image_file(tiny / "val/images/val_0.JPEG")
    (tiny / "wnids.txt").write_text("n02\nn01\n")
    (tiny / "val/val_annotations.txt").write_text("val_0.JPEG\tn02\t0\t0\t1\t1\n")
    found = source("tiny_imagenet", tmp_path)
    assert (found.samples("train").labels.tolist(), found.samples("test").labels.tolist()) == ([0, 1], [1])

    for split, label in (("train", 1), ("test", 0)):
        name = ("axe", "bee")[label]
        image_file(tmp_path / f"infograph/{name}/{split}.jpg")
        (tmp_path / f"infograph_{split}.txt").write_text(f"infograph/{name}/{split}.jpg {label}\n")
    assert source("infograph", tmp_path).samples("test").labels.tolist() == [0]


def test_ucf_groups_one_to_seven_are_the_test_split(tmp_path):
    for group in (1, 7, 8, 25):
        image_file(tmp_path / f"ucf101/ApplyEyeMakeup/v_ApplyEyeMakeup_g{group:02}_c01.jpg")
    found = source("ucf101", tmp_path)
    assert [path[-11:-8] for path in found.samples("test").paths] == ["g01", "g07"]
    assert len(found.samples("train")) == 2


def test_omniglot_reads_zips_and_folders_alike(tmp_path):
    for character in ("a", "b"):
        for k in range(6):
            image_file(tmp_path / f"one/images_background/Greek/{character}/{k}.png")
    (tmp_path / "two").mkdir()
    with zipfile.ZipFile(tmp_path / "two/images_background.zip", "w") as archive:
        for path in sorted((tmp_path / "one").rglob("*.png")):
            archive.write(path, path.relative_to(tmp_path / "one"))
    one, two = source("omniglot", tmp_path, "one"), source("omniglot", tmp_path, "two")
    assert one.class_names == two.class_names == ["Greek/a", "Greek/b"]
    assert one.samples("train").images == two.samples("train").images
    assert (len(one.samples("train")), len(one.samples("test"))) == (10, 2)


def test_voc_keeps_images_whose_objects_share_a_class(data_root):
    place = data_root / "voc_small/VOCdevkit/VOC2007"
    samples = source("voc", data_root, "voc_small").samples("test")
    for path, label in zip(samples.paths, samples.labels, strict=True):
        text = (place / f"Annotations/{path[-10:-4]}.xml").read_text()
        blocks = [block.split("</object>")[0] for block in text.split("<object>")[1:]]
        kinds = {b.split("<name>")[1].split("<")[0] for b in blocks if "<difficult>1<" not in b}
        assert kinds == {DATASETS["voc"].names[label]}


def test_tree_with_and_without_splits(photos):
    root = photos.parent
    found = source("folder", root, "photos")
    train, test = found.samples("train"), found.samples("test")
    assert (len(train), len(test)) == (20, 4)
    assert not set(train.paths) & set(test.paths)
    assert found.class_names == ["class0", "class1", "class2"]
    (root / "split").mkdir()
    shutil.copytree(photos, root / "split/train")
    shutil.copytree(photos / "class2", root / "split/val/class2")
    found = source("folder", root, "split")
    assert len(found.samples("train")) == 24
    assert set(found.samples("test").labels.tolist()) == {2}  # numbered as in train, though only one folder is there


def test_parquet_shards_names_and_secret_test_labels(tmp_path):
    def write(path, labels):
        path.parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        Image.new("RGB", (9, 9)).save(buffer, "PNG")
        rows = [{"bytes": buffer.getvalue(), "path": "x.png"}] * len(labels)
        table = pa.table({"img": rows, "fine_label": pa.array(labels, pa.int64())})
        info = {"info": {"features": {"fine_label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
        pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(info)}), path)

    for shard, labels in enumerate(([0, 1, 1], [1, 0])):
        write(tmp_path / f"mine/data/train-{shard:05}-of-00002.parquet", labels)
    write(tmp_path / "mine/data/test-00000-of-00001.parquet", [-1, -1])
    write(tmp_path / "mine/data/validation-00000-of-00001.parquet", [1])
    found = source("parquet", tmp_path, "mine")
    assert found.class_names == ["cat", "dog"]
    assert found.samples("train").labels.tolist() == [0, 1, 1, 1, 0]
    assert found.samples("test").labels.tolist() == [1]
    assert decode(found.samples("train")[4], "").shape == (9, 9, 3)


def test_a_truncated_parquet_shard_is_named(tmp_path):
    rows = {"image": [{"bytes": b"x" * 999, "path": None}] * 20, "label": list(range(20))}
    paths = [tmp_path / f"mine/train-{shard}.parquet" for shard in range(2)]
    paths[0].parent.mkdir()
    for path in paths:
        pq.write_table(pa.table(rows), path)
    assert len(source("parquet", tmp_path, "mine").samples("train")) == 40
    paths[1].write_bytes(paths[1].read_bytes()[:-50])
    with pytest.raises(ConfigError, match=r"train-1\.parquet is truncated"):
        source("parquet", tmp_path, "mine")


def test_parquet_pixels_equal_pillows(data_root):
    path = data_root / "cifar10/test-00000-of-00001.parquet"
    rows = next(pq.ParquetFile(path).iter_batches(20)).to_pylist()
    samples = source("cifar10", data_root).samples("test")
    for i, row in enumerate(rows):
        real = np.asarray(Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB"))
        assert np.array_equal(decode(samples[i], ""), real)
        assert samples.labels[i] == row["label"]


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA", "CMYK", "I;16"])
def test_any_image_mode_becomes_rgb(mode):
    image = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) * 4)
    image = Image.fromarray(np.full((8, 8), 0x8000, np.uint16)) if mode == "I;16" else image.convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, "TIFF")
    pixels = decode(buffer.getvalue(), "x")
    assert pixels.shape == (8, 8, 3) and pixels.dtype == np.uint8
    assert mode != "I;16" or (pixels == 0x80).all()


def test_absent_and_unknown_sets_say_what_to_do(tmp_path):
    with pytest.raises(ConfigError, match=r"put there torchvision's CIFAR10 files .*dataset.download=true"):
        source("cifar10", tmp_path)
    with pytest.raises(ConfigError, match="did you mean 'cifar100'"):
        source("cifar1000", tmp_path)
    with pytest.raises(ConfigError, match=r"put there class folders .*\(or data_root=...\)$"):
        source("folder", tmp_path, "nothing")  # nobody can fetch it
    (tmp_path / "flat/test").mkdir(parents=True)
    (tmp_path / "flat/test/x.jpg").write_bytes(b"")
    with pytest.raises(ConfigError, match="no class folders"):
        source("folder", tmp_path, "flat")


def test_failed_download_is_one_clear_error(tmp_path, monkeypatch):
    def no_network(*_, **__):
        raise OSError("Name or service not known")

    monkeypatch.setattr("torchvision.datasets.USPS", no_network)
    with pytest.raises(ConfigError, match="downloading failed: Name or service not known"):
        open_source("usps", "usps", tmp_path / "new", True)


def test_every_config_names_a_known_source():
    from pathlib import Path

    folder = Path(__file__).parents[2] / "config/dataset"
    names = {path.stem for path in folder.glob("[!_]*.yaml")}
    whole = ("digits", "mnist", "cifar10", "cifar100", "tiny_imagenet")
    halves = {f"{name}_{half}" for name in whole for half in ("low", "high")}
    assert names - halves == set(DATASETS) and halves < names
