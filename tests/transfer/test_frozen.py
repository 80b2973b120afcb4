"""Cached logits of frozen networks are those of a live forward pass."""

import numpy as np
import pytest
import torch
from digits import open_digits

from recombine.transfer.teacher_cache import FrozenTeachers, find_mirroring


@pytest.mark.parametrize(("augment", "count"), [("none", 1), ("flip", 2), ("flip_crop", None), ("crop_resize", None)])
def test_mirroring_is_what_the_loader_does(folder, augment, count):
    data = open_digits(folder, seed=3)
    options = {"batch_size": 64, "size": 8}
    loader = data.loader("train", **options, train=True, augment=augment)
    stored = next(data.loader("train", 1497, train=False).epoch(0)).images
    found = find_mirroring(loader.augment)
    if count is None:
        assert found is None
    else:
        assert found.forms == count
        for batch in loader.epoch(5):
            at = np.searchsorted(loader.indices, batch.index.numpy())  # some of the split are held out
            mirrored = found.form(batch.index, 5).bool()[:, None, None, None]
            seen = torch.where(mirrored, stored.flip(-1)[at], stored[at])
            assert torch.equal(seen, batch.images)
    data.close()


def test_cached_logits_are_the_live_ones(folder, networks, tmp_path):
    _, _, teachers = networks
    data = open_digits(folder, seed=1)
    loader = data.loader("train", 64, train=True, augment="flip")
    live, cached = FrozenTeachers(teachers), FrozenTeachers(teachers)
    cached.cache_logits(data.loader("train", 64, train=False), find_mirroring(loader.augment), tmp_path, "fp32")
    for epoch in (0, 1):
        live.epoch = cached.epoch = epoch
        for batch in loader.epoch(epoch):
            for one, other in zip(live(batch), cached(batch), strict=True):
                torch.testing.assert_close(one, other)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 4, "two teachers, two forms of each image"
    data.close()
