"""Remembered logits of frozen networks are those of a live pass."""

import pytest
import torch
from digits import opened

from recombine.transfer.teacher_cache import FrozenTeachers, views


@pytest.mark.parametrize(("augment", "count"), [("none", 1), ("flip", 2), ("flip_crop", None), ("crop_resize", None)])
def test_views_name_what_the_loader_shows(folder, augment, count):
    data = opened(folder, seed=3)
    options = {"batch_size": 64, "size": 8}
    loader = data.loader("train", **options, train=True, augment=augment)
    stored = next(data.loader("train", 1497, train=False).epoch(0)).images
    found = views(loader)
    if count is None:
        assert found is None
    else:
        view, number = found
        assert number == count
        for batch in loader.epoch(5):
            seen = torch.where(
                view(batch.index, 5).bool()[:, None, None, None], stored.flip(-1)[batch.index], stored[batch.index]
            )
            assert torch.equal(seen, batch.images)
    data.close()


def test_remembered_logits_are_the_live_ones(folder, networks, tmp_path):
    _, _, teachers = networks
    data = opened(folder, seed=1)
    loader = data.loader("train", 64, train=True, augment="flip")
    live, remembered = FrozenTeachers(teachers), FrozenTeachers(teachers)
    view, count = views(loader)
    remembered.remember(data.loader("train", 64, train=False), view, count, tmp_path, "fp32")
    for epoch in (0, 1):
        live.epoch = remembered.epoch = epoch
        for batch in loader.epoch(epoch):
            for one, other in zip(live(batch), remembered(batch), strict=True):
                torch.testing.assert_close(one, other)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 4, "two teachers, two views"
    data.close()
