"""Folders of images as people have them: each trouble with its right answer, whoever opens them."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from recombine.core.errors import ConfigError
from recombine.data.inspection import inspect
from recombine.data.sources import open_source
from tests import forked

ROOT = Path(__file__).parents[2]
COLOURS = {"red": (200, 40, 40), "green": (40, 200, 40), "blue": (40, 40, 200)}


def pictures(folder, *names, each=6, suffix="png", size=16):
    """`each` noisy pictures of the class's colour for every class."""
    rng = np.random.default_rng(0)
    for name in names or ("red", "green"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(each):
            colour = np.array(COLOURS.get(name.strip().lower(), (90, 90, 90)))
            pixels = np.clip(colour + rng.normal(0, 20, (size, size, 3)), 0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{i:02}.{suffix}")
    return folder


def looked_at(folder):
    return inspect(open_source("folder", ".", folder, False))


def errors(folder):
    try:
        return looked_at(folder).problems()
    except ConfigError as error:
        return error.problems


def junk(r):
    """What a Mac, a NAS, notebooks and Windows leave; the copies of test images among it must not be trained on."""
    pictures(r)
    (r / "__MACOSX/red").mkdir(parents=True)
    (r / "red/@eaDir/00.png").mkdir(parents=True)
    (r / "red/.ipynb_checkpoints").mkdir()
    (r / ".ipynb_checkpoints").mkdir()
    for place in ("__MACOSX/red/._00.png", "red/._00.png", "red/.DS_Store", "green/Thumbs.db", "desktop.ini"):
        (r / place).write_bytes(b"\0\5\26\7" + bytes(100))
    for place in (
        "red/@eaDir/00.png/THUMB.jpg",
        "red/.ipynb_checkpoints/00-checkpoint.png",
        ".ipynb_checkpoints/0.png",
    ):
        shutil.copy(r / "red/00.png", r / place)


def test_what_programs_leave_is_no_image_and_no_class(tmp_path):
    junk(tmp_path)
    found = looked_at(tmp_path)
    assert found.counts == {"train": {"green": 5, "red": 5}, "test": {"green": 1, "red": 1}} and not found.repeated
    names = {reason: sorted(map(os.path.basename, paths)) for reason, paths in found.left_out.items()}
    assert names["hidden or left by a program (.ipynb_checkpoints)"] == ["0.png", "00-checkpoint.png"]
    assert names["hidden or left by a program (@eaDir)"] == ["THUMB.jpg"]
    assert names["hidden or left by a program (__MACOSX)"] == names["hidden or left by a program (._*)"] == ["._00.png"]
    assert names["no image by its name (.db)"] == ["Thumbs.db"]
    remarks = " ".join(found.remarks())
    assert "2 left out: hidden or left by a program (.ipynb_checkpoints)" in remarks


def split(r, train, test, name="test"):
    pictures(r / "train", *train)
    pictures(r / name, *test, each=2)


def wrapped(r):
    pictures(r / "dataset")
    (r / "__MACOSX").mkdir()


def wrapped_split(r):
    split(r / "dataset", ("red", "green"), ("red", "green"))


def wrapped_below(r):
    pictures(r / "train/images", each=2)
    pictures(r / "test/images", each=2)


def empty_class(r):
    pictures(r)
    (r / "blue").mkdir()


def one_image(r):
    pictures(r)
    pictures(r, "blue", each=1)


def two_vals(r):
    split(r, ("red", "green"), ("red", "green"), "val")
    pictures(r / "valid", each=1)


def latin1_class(r):
    pictures(r)
    os.rename(os.fsencode(r / "red"), os.fsencode(r) + b"/caf\xe9")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda r: split(r, ("red", "green"), ("Red", "green")), "train/ has 'red' and test/ has 'Red'"),
        (lambda r: split(r, ("red", "green"), ("red ", "green")), "train/ has 'red' and test/ has 'red '"),
        (lambda r: split(r, ("caf\u00e9", "tea"), ("cafe\u0301", "tea")), "give both the same name"),
        (lambda r: split(r, ("red",), ("red", "blue")), "test/ has classes that train/ has not: blue"),
        (lambda r: split(r, ("red", "blue"), ("red", "green"), "val"), "val/ has classes that train/ has not: green"),
        (wrapped, r"dataset/ is a folder around the classes \(green, red\), not a class; give dataset.folder=/"),
        (wrapped_split, r"dataset/ is a folder around the classes \(test, train\)"),
        (wrapped_below, "images/ is a folder around .* move them one folder up"),
        (empty_class, "no image in the class folder blue; remove it, or put images in"),
        (one_image, "a single image of blue; add some"),
        (two_vals, "val and valid are one split"),
        (latin1_class, r"caf\\xe9 is no UTF-8; rename the folder"),
    ],
)
def test_folders_that_are_no_set_of_classes(tmp_path, make, said):
    make(tmp_path)
    problems = errors(tmp_path)
    assert len(problems) == (2 if make is wrapped_below else 1)
    assert all(str(tmp_path) in text and re.search(said, text) for text in problems), problems


def test_the_folder_around_the_classes_can_be_given_as_the_message_says(tmp_path):
    wrapped(tmp_path)
    given = errors(tmp_path)[0].rpartition("dataset.folder=")[2]
    assert open_source("folder", given, tmp_path, False).class_names == ["green", "red"]


def test_a_class_may_be_absent_from_the_test_images_alone(tmp_path):
    split(tmp_path, ("red", "green", "blue"), ("red", "blue"))
    found = looked_at(tmp_path)
    assert not found.problems() and found.remarks()[-1] == "no image in test of green"
    assert len(found.repeated) == 2, "the copies of training images among the test images"


@pytest.mark.parametrize("train", ["train", "Train"])
def test_val_is_a_split_beside_test(tmp_path, opened, train):
    pictures(tmp_path / "set" / train, each=8)
    pictures(tmp_path / "set/val", each=3)
    pictures(tmp_path / "set/test", each=2)
    data = opened("set", source="folder", val_fraction=0.5)
    assert data.splits == ("train", "val", "test")
    assert [len(data.indices(name)) for name in data.splits] == [16, 6, 4]  # its own images, not a part of train
    shutil.rmtree(tmp_path / "set/test")
    data = opened("set", source="folder")
    assert data.splits == ("train", "test") and len(data.indices("test")) == 6


def test_a_test_folder_without_labels_leaves_val_as_the_test_split(tmp_path):
    split(tmp_path, ("red", "green"), ("red", "green"), "val")
    (tmp_path / "test").mkdir()
    for i in range(3):
        shutil.copy(tmp_path / "val/red/00.png", tmp_path / f"test/{i}.png")
    found = looked_at(tmp_path)
    assert found.counts["test"] == {"green": 2, "red": 2}
    assert "3 left out: test/ has no class folders and thus no labels; val/ is the test split" in found.remarks()[0]


def test_classes_called_train_and_test_are_classes(tmp_path):
    pictures(tmp_path, "train", "bus", "test")
    assert looked_at(tmp_path).counts["train"] == {"bus": 5, "test": 5, "train": 5}


def test_links_are_followed_and_circles_seen(tmp_path):
    pictures(tmp_path / "real")
    for name in ("red", "green"):
        (tmp_path / "classes").mkdir(exist_ok=True)
        (tmp_path / "classes" / name).symlink_to(tmp_path / "real" / name)
        (tmp_path / "inner" / name).mkdir(parents=True)
        (tmp_path / "inner" / name / "part").symlink_to(tmp_path / "real" / name)
    for place in ("classes", "inner"):
        assert looked_at(tmp_path / place).counts["train"] == {"green": 5, "red": 5}
    (tmp_path / "real/red/loop").symlink_to(tmp_path / "real/red")
    (tmp_path / "real/red/itself").symlink_to(tmp_path / "real/red/itself")
    found = looked_at(tmp_path / "real")
    assert found.counts["train"] == {"green": 5, "red": 5}
    assert found.left_out["link back to a folder above it"] == [str(tmp_path / "real/red/loop")]
    assert "itself" in found.unreadable[0]


def test_all_unreadable_files_are_named_at_once(tmp_path, opened):
    place = pictures(tmp_path / "set", each=12, suffix="jpg", size=120)
    whole = (place / "red/00.jpg").read_bytes()
    (place / "red/00.jpg").write_bytes(b"")
    (place / "red/01.jpg").write_bytes(whole[: len(whole) // 2])
    (place / "red/02.jpg").write_text("<html>404</html>")
    (place / "red/03.jpg").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1234\n")
    (place / "red/04.jpg").write_bytes(b"nothing known")
    (place / "red/zz.png").symlink_to("/nonexistent/file.png")
    Image.new("L", (20000, 10000)).save(place / "red/scan.png")
    expected = {
        "00.jpg": "is empty",
        "01.jpg": "truncated",
        "02.jpg": "is a web page",
        "03.jpg": "git lfs pull",
        "04.jpg": "no image of a known format",
        "zz.png": "cannot be read: No such file",
        "scan.png": "more than the 178,956,970 pixels that an image may have",
    }
    with pytest.raises(ConfigError) as error:
        opened("set", source="folder")
    said = sorted(error.value.problems)
    assert len(said) == len(expected)
    for name, reason in expected.items():
        assert any(name in text and reason in text for text in said), (name, said)


def test_oddities_that_are_no_errors_are_said(tmp_path, caplog):
    place = pictures(tmp_path, each=12, suffix="jpg", size=32)
    body = bytearray((place / "red/07.jpg").read_bytes())
    body[-60:-50] = bytes(range(10))  # damaged in the middle: decoders go on
    (place / "red/07.jpg").write_bytes(bytes(body))
    shutil.copy(place / "red/01.jpg", place / "green/copy.jpg")
    Image.new("RGB", (32, 32), (9, 9, 9)).save(place / "red/flat.jpg")
    os.rename(os.fsencode(place / "red/00.jpg"), os.fsencode(place / "red") + b"/caf\xe9.jpg")
    (place / "red/02.jpg").rename(place / "red/02.JPG")
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(place / "red/03.png")
    (place / "red/03.png").rename(place / "red/png_in_truth.jpg")
    found = looked_at(place)
    assert not found.problems()
    assert sum(sum(counts.values()) for counts in found.counts.values()) == 27
    assert [sorted(map(os.path.basename, group)) for group in found.repeated] == [["01.jpg", "copy.jpg"]]
    assert sorted(map(os.path.basename, found.constant)) == ["flat.jpg", "png_in_truth.jpg"]


def test_numbers_as_class_folders(tmp_path, opened):
    pictures(tmp_path / "set", "10", "2", "3")
    assert "sorted as text: label 0 is 10, 1 is 2" in looked_at(tmp_path / "set").remarks()[-1]
    with pytest.raises(ConfigError, match=r"2 is the label of class '3' and the name of another.*\['2'\]"):
        opened("set", source="folder", class_subset=[2])
    assert opened("set", source="folder", class_subset=["2"]).class_names == ["2"]
    (tmp_path / "set/map.json").write_text('{"2": 5, "3": 6, "10": 7}')
    data = opened("set", source="folder", label_map="map.json")
    assert data.class_names[5:] == ["2", "3", "10"]


@pytest.mark.parametrize("name", ["big cat", "a=b,c", "éléphant", "[x]", "日本 語"])
def test_any_class_name_will_do(tmp_path, name):
    pictures(tmp_path, name, "other")
    assert looked_at(tmp_path).counts["train"] == dict.fromkeys(sorted((name, "other")), 5)


def test_what_was_looked_at_is_remembered_until_a_file_changes(tmp_path, monkeypatch):
    source = open_source("folder", ".", pictures(tmp_path / "set"), False)
    first = inspect(source, tmp_path / "cache")
    with monkeypatch.context() as patched:
        patched.setattr("recombine.data.inspection.open_image", lambda *_: pytest.fail("opened again"))
        assert inspect(source, tmp_path / "cache") == first
    (remembered,) = (tmp_path / "cache" / "inspections").iterdir()
    remembered.write_text(remembered.read_text().replace("10", "11"))  # a damaged note is no fact
    assert inspect(source, tmp_path / "cache") == first
    (tmp_path / "set/red/00.png").write_bytes(b"broken")
    assert inspect(open_source("folder", ".", tmp_path / "set", False), tmp_path / "cache").problems()


def test_the_tool_shows_what_there_is_and_refuses_what_cannot_be_read(tmp_path):
    junk(tmp_path)
    done = forked.run("inspect_data", str(tmp_path), cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "2 classes; train 10, test 2 images" in done.stdout and "THUMB.jpg" in done.stdout
    (tmp_path / "red/00.png").write_bytes(b"")
    done = forked.run("inspect_data", str(tmp_path), cwd=ROOT)
    assert done.returncode == 2 and "00.png is empty" in done.stderr and "Traceback" not in done.stderr


def test_a_small_set_is_used_whole(tmp_path, opened):
    pictures(tmp_path / "set", each=72, size=8)  # 120 training images
    loader = opened("set", source="folder").loader("train", 32, train=True, even=True)
    sizes = [len(batch) for batch in loader.epoch_batches(0)]
    assert sizes == [30] * 4 and loader.samples == 120 and len(loader) == 4
    assert sorted(np.concatenate(loader.epoch_batches(0))) == list(range(120))
    assert [len(batch) for batch in loader.epoch_batches(0, 3)] == [30]
    parts = [
        opened("set", source="folder", rank=rank, world=2).loader("train", 32, train=True, even=True).epoch_batches(0)
        for rank in (0, 1)
    ]
    for whole, *ranks in zip(loader.epoch_batches(0), *parts, strict=True):
        assert np.array_equal(whole, np.concatenate(ranks)) and len({len(part) for part in ranks}) == 1
    # nearly all used, or parts of fixed size: as before
    assert len(opened("set", source="folder").loader("train", 28, train=True, even=True)) == 4
    assert len(opened("set", source="folder").loader("train", 32, train=True)) == 3


# --- names


@pytest.mark.parametrize(("images", "held_out"), [(2, 1), (3, 1), (6, 1), (12, 2)])
def test_of_few_images_one_of_each_class_is_held_out(tmp_path, opened, images, held_out):
    for name in "abc":
        (tmp_path / "few" / name).mkdir(parents=True)
        for k in range(images):
            Image.new("RGB", (20, 20), (9 * k, ord(name), 0)).save(tmp_path / "few" / name / f"{k}.png")
    data = opened("few", source="folder")
    assert np.bincount(data.labels("test")).tolist() == [held_out] * 3
    assert np.bincount(data.labels("train")).tolist() == [images - held_out] * 3


def test_folders_have_their_own_name_and_a_fingerprint(tmp_path, opened):
    for place in ("one", "two"):
        pictures(tmp_path / place / "photos")
    first, second = (opened("photos", root=tmp_path / place, source="folder").name for place in ("one", "two"))
    assert first == second and first.startswith("photos-") and len(first) == len("photos-") + 8
    shutil.copy(tmp_path / "two/photos/red/00.png", tmp_path / "two/photos/red/99.png")
    assert opened("photos", root=tmp_path / "two", source="folder").name != first
    (tmp_path / "one/photos/red").rename(tmp_path / "one/photos/rot")
    assert opened("photos", root=tmp_path / "one", source="folder").name != first
