"""Subsets by index: stratified, by class, relabelled."""

from __future__ import annotations

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.model_selection import StratifiedShuffleSplit

from recombine.core.errors import ConfigError
from recombine.data import open_data
from recombine.data.splits import Relabel, stratified


def test_fraction_is_one_draw_of_scikit_learns_splitter(opened):
    data, labels = opened(fraction=0.1), opened().labels("train")
    splitter = StratifiedShuffleSplit(n_splits=1, test_size=0.1, random_state=1234)
    expected = np.sort(next(splitter.split(labels, labels))[1])
    assert np.array_equal(data.indices("train"), expected)
    assert np.array_equal(data.labels("train"), labels[expected])
    assert len(data.indices("test")) == 300
    assert not np.array_equal(data.indices("train"), opened(fraction=0.1, fraction_seed=1).indices("train"))


def test_a_tenth_of_imagenet_has_the_papers_size():
    labels = np.resize(np.arange(1000), 1281167)
    assert len(stratified(labels, 0.1, 1234, "fraction")[1]) == 128117


def test_validation_part_is_disjoint_and_stratified(opened):
    data = opened(val_fraction=0.2, fraction=0.5, test_fraction=0.5)
    train, val = data.indices("train"), data.indices("val")
    assert data.splits == ("train", "test", "val")
    assert not set(train) & set(val)
    assert len(val) == 300 and len(train) == 599 and len(data.indices("test")) == 150
    shares = np.bincount(data.labels("val")) / np.bincount(opened().labels("train"))
    assert np.abs(shares - 0.2).max() < 0.01


def test_class_subset_relabels_in_the_given_order(opened):
    data, whole = opened(class_subset=[7, "3"]), opened()
    assert data.classes == 2 and data.class_names == ["7", "3"]
    chosen = data.indices("test")
    assert set(whole.labels("test")[chosen]) == {3, 7}
    assert np.array_equal(data.labels("test"), (whole.labels("test")[chosen] == 3).astype(int))
    assert sum(len(opened(class_subset=[k]).indices("test")) for k in range(10)) == 300
    batch = next(data.loader("test", 16, train=False).epoch(0))
    assert np.array_equal(batch.labels.numpy(), data.labels("test")[:16])


@pytest.mark.parametrize(
    "content", [[5, 3], {"0": 5, "1": 3}, {"cat": 5, "dog": 3}, {"index": [5, 3], "ids": ["a", "b"]}]
)
def test_label_maps_in_all_forms(opened, photos, content):
    (photos / "class2").rename(photos.parent / "unused")
    (photos / "class0").rename(photos / "cat")
    (photos / "class1").rename(photos / "dog")
    (photos / "map.json").write_text(json.dumps(content))
    data = opened("photos", source="folder", root=photos.parent, label_map="map.json", classes=7)
    plain = opened("photos", source="folder", root=photos.parent)
    assert data.classes == 7 and data.class_names[3] == "dog" and data.class_names[5] == "cat"
    assert np.array_equal(data.labels("train"), np.array([5, 3])[plain.labels("train")])


def test_imagenette_takes_imagenet_labels(opened, data_root):
    options = {"source": "parquet", "label_map": "imagenet_index.json", "classes": 1000}
    data = opened("imagenette160", root=data_root, **options)
    index = json.loads((data_root / "imagenette160/imagenet_index.json").read_text())
    assert data.classes == 1000 and set(data.labels("test")) == set(index["imagenet_index"])
    assert data.class_names[217] == "English springer"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_subset": [3, 12]}, r"class_subset=\[3, 12\]: \[12\] not among 10 classes"),
        ({"class_subset": [3, "3"]}, "names a class twice"),
        ({"classes": 5}, "labels reach 9: dataset.classes=10"),
        ({"fraction": 0}, "dataset.fraction=0: a number above 0 and at most 1"),
        ({"val_fraction": 1.0}, "dataset.val_fraction=1: a number"),
        ({"fractoin": 0.5}, "unknown setting dataset.fractoin: did you mean 'fraction'"),
        ({"storage": "png"}, "dataset.storage=png: one of auto, raw, jpeg"),
        (
            {"fraction": 0.001},
            "each of 10 classes needs a sample on either side; try dataset.fraction=0.007",
        ),
        (
            {"fraction": 0.999},
            "each of 10 classes needs a sample on either side; try dataset.fraction=0.993",
        ),
    ],
)
def test_impossible_subsets_say_why(opened, options, message):
    with pytest.raises(ConfigError, match=message):
        opened(**options).indices("train")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"class_subset": [77]}, "source_data.class_subset=[77]: [77] not among 10 classes"),
        ({"test_fraction": 1e-4}, "source_data.test_fraction=0.0001 of 300 samples cannot be stratified"),
        ({"classes": 3}, "labels reach 9: source_data.classes=10 at least"),
    ],
)
def test_messages_name_the_place_of_the_settings(tmp_path, options, told):
    where = {"data_root": tmp_path, "cache_root": tmp_path, "seed": 0, "device": "cpu", "path": "source_data"}
    with pytest.raises(ConfigError) as error:
        open_data({"name": "digits", **options}, loader={"kind": "torch", "workers": 0}, **where).indices("test")
    (problem,) = error.value.problems
    assert problem.startswith(told) and str(error.value) == problem and "dataset." not in problem


def test_labels_missing_from_a_map_are_named():
    with pytest.raises(ConfigError, match="says nothing about dog"):
        Relabel(["cat", "dog"], {"cat": 1}, None, None)


def test_images_without_a_label_are_there_for_those_who_ask(tmp_path):
    """Null or -1 in a parquet file; outside of the classes in a folder."""
    image = io.BytesIO()
    Image.new("RGB", (8, 8)).save(image, "png")
    for split, labels in (("train", [0, None, 1, -1, 0, 1]), ("test", [0, 1])):
        table = {"image": [{"bytes": image.getvalue()}] * len(labels), "label": pa.array(labels, pa.int64())}
        (tmp_path / "set").mkdir(exist_ok=True)
        pq.write_table(pa.table(table), tmp_path / "set" / f"{split}-0.parquet")
        for number, label in enumerate(labels):
            place = tmp_path / "tree" / split / ("" if label in (None, -1) else f"class{label}")
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{number}.png").write_bytes(image.getvalue())
    for node, bare in (({"name": "set", "source": "parquet"}, [1, 3]), ({"name": "tree", "source": "folder"}, [4, 5])):
        where = {"data_root": tmp_path, "cache_root": tmp_path, "seed": 0, "device": "cpu"}
        data = open_data({"classes": 2, **node}, loader={"kind": "torch", "workers": 0}, **where)
        labelled = sorted({*range(6)} - {*bare})
        assert data.indices("train").tolist() == labelled and (data.labels("train") >= 0).all()
        assert data.indices("train", unlabelled=True).tolist() == list(range(6))
        (batch,) = data.loader("train", 6, train=False, indices=range(6)).epoch(0)
        assert [i for i, label in enumerate(batch.labels.tolist()) if label == -1] == bare


def test_a_class_with_one_sample_is_named():
    with pytest.raises(
        ConfigError, match=r"half=0\.5 of 5 samples .* a class needs two samples .* one of label 7; add"
    ):
        stratified(np.array([3, 3, 7, 5, 5]), 0.5, 0, "half")
