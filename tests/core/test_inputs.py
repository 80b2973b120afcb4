"""What a run read decides whether it is finished: data, weights and foreign code that change make it run again."""

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from recombine.core.inputs import Manifest, collecting, file_digest, record_file
from recombine.data import open_data


@pytest.fixture
def weights(tmp_path):
    root = tmp_path / "weights"
    root.mkdir()
    (root / "a.safetensors").write_bytes(b"0123456789")
    return root


def noted(folder, **roots):
    folder.mkdir(exist_ok=True)
    return Manifest(folder, roots)


def test_a_file_is_known_by_its_place_below_its_root_and_by_its_content(tmp_path, weights):
    run = tmp_path / "run"
    with collecting(noted(run, weights_root=weights)) as manifest:
        record_file("weights", weights / "a.safetensors")
        record_file("weights", weights / "absent.safetensors")
    (entry,) = json.loads((run / "inputs.json").read_text())["inputs"]
    assert entry["name"] == "$weights_root/a.safetensors" and entry["digest"] == file_digest(weights / "a.safetensors")
    assert manifest.digests() == {"weights $weights_root/a.safetensors": entry["digest"]}
    assert noted(run, weights_root=weights).changes(run) == []
    moved = tmp_path / "elsewhere"
    shutil.copytree(weights, moved)  # other times and inodes, the same content
    assert noted(run, weights_root=moved).changes(run) == []
    (moved / "a.safetensors").write_bytes(b"01234")
    (told,) = noted(run, weights_root=moved).changes(run)
    assert told.startswith("weights $weights_root/a.safetensors has changed")
    (moved / "a.safetensors").unlink()
    assert "is not there any more" in noted(run, weights_root=moved).changes(run)[0]


def test_the_same_size_and_time_is_taken_as_the_same_file_unless_asked(tmp_path, weights):
    run, file = tmp_path / "run", weights / "a.safetensors"
    with collecting(noted(run, weights_root=weights)):
        record_file("weights", file)
    status = file.stat()
    with file.open("r+b") as stream:
        stream.write(b"x")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert noted(run, weights_root=weights).changes(run) == []
    assert len(noted(run, weights_root=weights).changes(run, verify=True)) == 1


def test_nothing_is_noted_outside_of_a_run_and_nothing_known_is_no_change(tmp_path, weights):
    record_file("weights", weights / "a.safetensors")
    assert noted(tmp_path / "run", weights_root=weights).changes(tmp_path / "run") == []


@pytest.fixture
def photos(tmp_path):
    """Two classes of six pictures in train and test."""
    root = tmp_path / "photos"
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for k in range(6):
                pixels = rng.integers(0, 256, (16, 16, 3), np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{k}.png")
    return root


def opened(root, run, tmp_path):
    with collecting(noted(run, data_root=root.parent)):
        node = {"name": root.name, "source": "folder"}
        where = {"data_root": root.parent, "cache_root": tmp_path / "cache", "seed": 0, "device": "cpu"}
        data = open_data(node, loader={"kind": "torch", "workers": 0}, **where)
        data.split("train"), data.split("test")
        data.close()


def test_data_are_known_by_names_sizes_classes_and_contents(photos, tmp_path):
    run = tmp_path / "run"
    opened(photos, run, tmp_path)
    again = noted(run, data_root=photos.parent)
    assert again.changes(run) == []
    copy = tmp_path / "moved" / "photos"
    shutil.copytree(photos, copy, copy_function=shutil.copy)  # other times
    moved = noted(run, data_root=copy.parent)
    assert moved.changes(run) == []
    file = copy / "test" / "dog" / "3.png"
    file.write_bytes(bytes(reversed(file.read_bytes())))  # of the same size
    assert [text.split()[1] for text in moved.changes(run)] == ["photos/test"]
    for split in ("train", "test"):  # the times of the files stay
        (photos / split / "dog").rename(photos / split / "wolf")
    assert [text.split()[1] for text in again.changes(run)] == ["photos/train", "photos/test"]
