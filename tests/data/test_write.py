"""Betons: whole or absent, current or refused, safe for several writers."""

from __future__ import annotations

import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from recombine.core.errors import ConfigError, WriteError
from recombine.core.files import write_json
from recombine.data import open_data
from tests import forked

pytest.importorskip("ffcv")
from ffcv.reader import Reader

from recombine.data.write import beton_path, ensure, manifest_of, wrong

ROOT = Path(__file__).parents[2]


@pytest.fixture
def split(opened):
    return opened(kind="ffcv").split("test")


def images_in(split):
    reader = Reader(str(ensure(split)))
    data = np.fromfile(ensure(split), np.uint8)
    order = np.argsort(reader.alloc_table["ptr"])
    pointers, sizes = reader.alloc_table["ptr"][order], reader.alloc_table["size"][order]
    for row in reader.metadata["f0"]:
        size = sizes[np.searchsorted(pointers, row["data_ptr"])]
        yield row, data[row["data_ptr"] : row["data_ptr"] + size].tobytes()


def test_manifest_says_what_the_file_holds(split):
    path = ensure(split)
    manifest = manifest_of(path)
    assert manifest["samples"] == 300 and manifest["classes"] == 10
    assert manifest["bytes"] == path.stat().st_size
    assert manifest["fields"] == ["image", "label", "index"]
    assert manifest["source"] == split.samples.identity
    assert not list(path.parent.glob("*.tmp"))


def test_written_once(split):
    first = ensure(split).stat().st_mtime_ns
    assert ensure(split).stat().st_mtime_ns == first
    assert ensure(split, rewrite=True).stat().st_mtime_ns > first


def test_original_jpeg_bytes_are_kept(opened, photos):
    Image.effect_noise((700, 640), 60).convert("RGB").save(photos / "class1/big.jpg", quality=70)
    Image.new("CMYK", (200, 200), (10, 90, 0, 40)).save(photos / "class1/cmyk.jpg")
    split = opened("photos", "ffcv", source="folder", root=photos.parent).split("train")
    kept = 0
    for (row, data), path in zip(images_in(split), split.samples.paths, strict=True):
        name = Path(path).name
        if name.endswith(".jpg") and name not in ("big.jpg", "cmyk.jpg"):
            assert data == Path(path).read_bytes()
            kept += 1
        assert row["mode"] == 0 and max(row["height"], row["width"]) <= 512
    assert kept >= 12


def test_raw_storage_keeps_every_pixel(opened, photos):
    split = opened("photos", "ffcv", source="folder", root=photos.parent, storage="raw").split("test")
    for (row, data), path in zip(images_in(split), split.samples.paths, strict=True):
        real = np.asarray(Image.open(path).convert("RGB"))
        assert row["mode"] == 1 and data == real.tobytes() and (row["height"], row["width"]) == real.shape[:2]


def damage(path, how):
    if how == "truncated":
        os.truncate(path, path.stat().st_size - 5000)
    elif how == "damaged":
        with open(path, "r+b") as file:
            file.seek(2000)
            file.write(b"\xff" * 64)
    elif how == "its pixels are not":
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif how == "has no readable manifest":
        path.with_suffix(".manifest.json").write_text("[]")
    else:
        write_json(path.with_suffix(".manifest.json"), manifest_of(path) | {"source": "another"})


@pytest.mark.parametrize("how", ["truncated", "damaged", "its pixels are not", "stale", "has no readable manifest"])
def test_bad_files_are_written_again_with_a_word(opened, how, caplog):
    data = opened(kind="ffcv")
    path = ensure(data.split("test"))
    good = path.read_bytes()
    damage(path, how)
    assert len(next(data.loader("test", 10, train=False).epoch(0)).index) == 10
    assert f"{path} " in caplog.text and how in caplog.text and "it is written again" in caplog.text
    assert path.read_bytes() == good and wrong(data.split("test"), path) is None


def test_a_beton_that_was_copied_is_read_once_and_is_the_same(split, caplog):
    path = ensure(split)
    os.utime(path)
    noted = path.with_suffix(".manifest.json").stat().st_mtime_ns
    assert ensure(split) == path and not caplog.text
    assert path.with_suffix(".manifest.json").stat().st_mtime_ns > noted


def test_changed_source_is_stale(opened, photos, caplog):
    options = {"source": "folder", "root": photos.parent}
    ensure(opened("photos", "ffcv", **options).split("train"))
    Image.new("RGB", (150, 150)).save(photos / "class0/new.jpg")
    path = ensure(opened("photos", "ffcv", **options).split("train"))
    assert re.search(r"is stale: the files in .*photos have changed", caplog.text)
    assert manifest_of(path)["samples"] == len(opened("photos", "ffcv", **options).split("train").samples)


@pytest.mark.parametrize("content", [b"no image at all", b""])
def test_broken_image_is_named_and_leaves_nothing_behind(opened, photos, content):
    for path in photos.rglob("*.jpg"):
        good = path.read_bytes()
    broken = photos / "class0/00.jpg"
    broken.write_bytes(content or good[: len(good) // 2])
    with pytest.raises(ConfigError, match=r"class0/00.jpg is not a readable image"):
        opened("photos", "ffcv", source="folder", root=photos.parent)  # looked at before anything else
    data = opened("imagenet", "ffcv", folder="photos", root=photos.parent)
    with pytest.raises(ConfigError, match=r"class0/00.jpg is not a readable image"):
        for name in ("train", "test"):
            ensure(data.split(name))
    assert not list((photos.parent / "cache").rglob("*.tmp"))


def test_source_may_be_read_only(opened, photos):
    before = sorted(photos.parent.rglob("*"))
    for path in [photos, *photos.rglob("*")]:
        path.chmod(path.stat().st_mode & ~0o222)
    ensure(opened("photos", "ffcv", source="folder", root=photos.parent).split("test"))
    new = set(photos.parent.rglob("*")) - set(before)
    assert new and all(photos.parent / "cache" in (path, *path.parents) for path in new)


def read_through(cache):
    """Print the sum of all pixels of the test images, which the loader converts first."""
    where = {"data_root": ".", "cache_root": str(cache), "seed": 0, "device": "cpu"}
    data = open_data({"name": "digits"}, loader={"kind": "ffcv"}, **where)
    print(sum(int(batch.images.sum()) for batch in data.loader("test", 64, train=False).epoch(0)))


def test_concurrent_writers_leave_one_whole_file(opened):
    split = opened(kind="ffcv").split("test")
    with ThreadPoolExecutor(2) as pool:
        answers = {done.stdout.strip() for done in pool.map(forked.call, 2 * [read_through], 2 * [split.betons.parent])}
    assert answers == {str(int(split.pixels.sum(dtype=np.int64)))}
    assert [path.name for path in split.betons.glob("*.beton*")] == [beton_path(split).name]


def test_full_disk_is_a_clear_error(split, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("recombine.data.write.handle_sample", full)
    with pytest.raises(WriteError, match=r"No space left on device .*cache_root="):
        ensure(split)
    assert not beton_path(split).exists() and not list(split.betons.glob("*.tmp"))
