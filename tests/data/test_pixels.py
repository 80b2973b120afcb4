"""Pixels of images as people have them: deep, transparent, turned."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from recombine.core.errors import ConfigError
from tests.data.test_folders import pictures


def saved(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def means(data, split="train"):
    """Mean brightness of each class, as a loader gives it."""
    loader = data.loader(split, 1000, train=False, size=None if data.size else 32)
    (batch,) = loader.epoch(0)
    return [float(batch.images[batch.labels == k].float().mean()) for k in range(data.classes)]


@pytest.mark.parametrize(
    ("kind", "suffix", "dark", "light", "ends"),
    [
        ("float32", "tiff", (0, 0.3), (0.6, 0.9), (0, 1)),
        ("float32", "tiff", (-0.9, -0.5), (0.5, 0.9), (-1, 1)),
        ("float32", "tiff", (0, 80), (150, 230), (0, 255)),
        ("uint16", "png", (0, 1500), (2500, 4000), (0, 4095)),
        ("uint16", "png", (0, 15000), (40000, 65000), (0, 65535)),
        ("int32", "tiff", (0, 200), (600, 1000), (0, 1023)),
    ],
)
def test_deep_images_are_scaled_by_the_range_of_the_set(tmp_path, opened, kind, suffix, dark, light, ends):
    rng, raw = np.random.default_rng(0), {}
    for name, (low, high) in (("dark", dark), ("light", light)):
        raw[name] = []
        for i in range(12):
            pixels = (rng.random((16, 16)) * (high - low) + low).astype(kind)
            saved(tmp_path / "set" / name / f"{i:02}.{suffix}", pixels)
            raw[name].append(pixels)
    data = opened("set", source="folder")
    assert data.decoding.pixel_range == ends
    expected = [255 * (float(np.mean(raw[name])) - ends[0]) / (ends[1] - ends[0]) for name in ("dark", "light")]
    np.testing.assert_allclose(means(data), expected, atol=4)
    half = opened("set", source="folder", pixel_range=[ends[0], 2 * ends[1] - ends[0]])
    np.testing.assert_allclose(means(half), np.array(expected) / 2, atol=4)


@pytest.mark.parametrize(
    ("kind", "values", "said"),
    [
        ("float32", (-50, 900), r"values from -50 to 900: which are black and white\? dataset.pixel_range=\[-50,900\]"),
        ("int32", (0, 100000), r"dataset.pixel_range=\[0,100000\]"),
        ("float32", (0, np.nan), "holds values that are no numbers"),
    ],
)
def test_deep_images_without_a_known_range_are_refused(tmp_path, opened, kind, values, said):
    pictures(tmp_path / "set")
    saved(tmp_path / "set/red/deep.tiff", np.array([values] * 2, kind))
    with pytest.raises(ConfigError, match=said):
        opened("set", source="folder")


@pytest.mark.parametrize(
    ("background", "expected"), [("white", 255), ("#404040", 64), (None, 0)], ids=["white", "grey", "dropped"]
)
def test_transparency_lies_on_a_background(tmp_path, opened, background, expected):
    """Drawings whose shape is in the alpha channel; colours are black everywhere."""
    for name, rows in (("bar", 4), ("block", 12)):
        for i in range(12):
            pixels = np.zeros((16, 16, 4), np.uint8)
            pixels[:rows, :, 3] = 255
            saved(tmp_path / "set" / name / f"{i}.png", pixels)
    found = means(opened("set", source="folder", background=background))
    np.testing.assert_allclose(found, [expected * 12 / 16, expected * 4 / 16], atol=0.5)


@pytest.mark.parametrize("kind", ["torch", "ffcv"])
@pytest.mark.parametrize("storage", ["auto", "jpeg"])
def test_photographs_are_turned_as_the_camera_was_held(tmp_path, opened, storage, kind):
    """The upper half is bright once they are upright, of images that are stored as they come and as JPEG."""
    if kind == "ffcv":
        pytest.importorskip("ffcv")
    upright = np.full((48, 32, 3), 30, np.uint8)
    upright[:24] = 220
    for number, turn in ((1, 0), (3, 180), (6, 90), (8, -90)):
        for name in ("one", "two"):
            for i in range(3):
                file = tmp_path / "set" / name / f"{number}{i}.jpg"
                file.parent.mkdir(parents=True, exist_ok=True)
                exif = Image.Exif()
                exif[0x0112] = number
                Image.fromarray(upright).rotate(turn, expand=True).save(file, exif=exif, quality=95)
    for keep, expected in ((True, 0), (False, 18)):
        data = opened("set", kind, source="folder", exif_orientation=keep, storage=storage)
        batches = list(data.loader("train", 8, train=False, size=32).epoch(0))
        batches += list(data.loader("test", 8, train=False, size=32).epoch(0))
        wrong = sum(
            int(not (image[:, :12].float().mean() > 180 and image[:, -12:].float().mean() < 70))
            for batch in batches
            for image in batch.images
        )
        assert wrong == expected
