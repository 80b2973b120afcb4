"""Opening data sets in a temporary cache, closed at the end of the test."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from recombine.data import Data, open_data


@pytest.fixture
def opened(tmp_path):
    """open_data with defaults: opened(name, kind="torch", ..., **dataset options)."""
    made: list[Data] = []

    def make(
        name="digits", kind="torch", *, workers=0, root=tmp_path, seed=0, rank=0, world=1, device="cpu", **options
    ):
        where = {"data_root": root, "cache_root": tmp_path / "cache", "seed": seed, "device": device}
        node = {"name": name, "download": False, **options}
        data = open_data(node, loader={"kind": kind, "workers": workers}, **where, rank=rank, world=world)
        made.append(data)
        return data

    yield make
    for data in made:
        data.close()


@pytest.fixture
def photos(tmp_path):
    """A class tree of 24 JPEG, PNG and grey images of different sizes: photos/<class>/<image>."""
    rng = np.random.default_rng(0)
    for k in range(24):
        height, width = rng.integers(140, 260, 2)
        coarse = Image.fromarray(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8))
        image = coarse.resize((int(width), int(height)), Image.Resampling.BICUBIC)
        folder = tmp_path / "photos" / f"class{k % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        if k % 5 == 4:
            image.save(folder / f"{k:02}.png")
        else:
            (image.convert("L") if k % 7 == 0 else image).save(folder / f"{k:02}.jpg", quality=90)
    return tmp_path / "photos"
