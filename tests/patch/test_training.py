"""Loaders of patch training: the batches of what they stand for, without a wait of the host between them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from recombine import data as datasets
from recombine.core.errors import ConfigError
from recombine.data.mixed import LabelOffsetLoader, MixedLoader, shares
from recombine.models.graph import traced
from recombine.patch.cached_features import CachedFeatureLoader, cache_features
from recombine.patch.delta import Delta
from recombine.patch.patched import TaskNetwork
from recombine.patch.tasks import Task
from recombine.patch.training import TaskTraining

READING = ("item", "cpu", "tolist", "numpy", "__bool__", "__float__", "__int__", "__index__", "__array__", "to")


@pytest.fixture
def opened(tmp_path):
    """Opens handwritten digits on a device."""
    found = []

    def make(device="cpu", kind="device", augment="none"):
        settings = {"loader": {"kind": kind, "workers": 0}, "data_root": "", "seed": 0, "device": device}
        found.append(datasets.open_data({"name": "digits", "augment": augment}, cache_root=tmp_path, **settings))
        return found[-1]

    yield make
    for data in found:
        data.close()


def cached(network, data, device="cpu", views=None):
    """A loader of cached values of 64 images a batch, and the loader of images whose order it has."""
    model = network("resnet8", size=8).to(device)
    patched = TaskNetwork(model, Delta(traced(model), 10, modules=1)).to(device)
    train = data.loader("train", 64, train=True)
    train.views = views
    return CachedFeatureLoader(train, patched, "fp32"), train, patched


def test_cached_batches_are_those_of_the_images(network, opened):
    loader, train, patched = cached(network, opened())
    for epoch, start in ((0, 0), (3, 5)):
        pairs = list(zip(loader.epoch(epoch, start), train.epoch(epoch, start), strict=True))
        assert len(pairs) == len(train) - start
        for batch, images in pairs:
            assert torch.equal(batch.labels, images.labels) and torch.equal(batch.index, images.index)
        with torch.no_grad():
            torch.testing.assert_close(batch.images, patched.eval().prefix(images.images))
    assert list(loader.epoch(0, len(train))) == []


@pytest.mark.parametrize("kind", ["torch", "device"])
def test_fixed_views_are_kept_exactly(network, opened, kind):
    """Epoch 5 of three views shows the images of view 2 in the order of epoch 5; new views differ from each other."""
    loader, train, patched = cached(network, opened(kind=kind, augment="flip_crop"), views=3)
    for epoch, start in ((5, 7), (2, 0)):
        pairs = list(zip(loader.epoch(epoch, start), train.epoch(epoch, start), strict=True))
        for batch, images in pairs:
            assert torch.equal(batch.labels, images.labels) and torch.equal(batch.index, images.index)
            with torch.no_grad():
                torch.testing.assert_close(batch.images, patched.eval().prefix(images.images))
    fixed = [torch.cat([b.images for b in train.read(train.views and e % 3, [train.indices[:9]])]) for e in (0, 1, 3)]
    assert torch.equal(fixed[0], fixed[2]) and not torch.equal(fixed[0], fixed[1])


def test_a_line_says_what_is_kept_and_why_not(network, opened, caplog):
    caplog.set_level("INFO")
    model, data = network("resnet8", size=8), opened(augment="flip_crop")
    patched = TaskNetwork(model, Delta(traced(model), 10, modules=1))
    task = Task("digits", data, model, 64)
    for views, limit, kept in ((None, 4, False), (2, 4, True), (2, 1e-6, False)):
        loader = data.loader("train", 64, train=True)
        loader.views = views
        (found,) = cache_features([loader], [task], patched, "fp32", limit)
        assert isinstance(found, CachedFeatureLoader) == kept
    lines = [record.getMessage() for record in caplog.records if "first patched place" in record.getMessage()]
    assert "augment_views=8" in lines[0] and "kept (0.01 GiB) in 2 augmented views" in lines[1]
    assert "more than feature_cache_gib=1e-06" in lines[2]


def test_the_host_never_waits_between_cached_batches(network, opened, monkeypatch):
    """Nothing is moved to the device or read from it, in joint batches too."""
    first, second = (cached(network, opened())[0] for _ in range(2))
    batches = MixedLoader([LabelOffsetLoader(first, 0), LabelOffsetLoader(second, 10)], lambda images: images).epoch(0)
    next(batches)

    def refuse(name):
        def refused(*_, **__):
            raise AssertionError(f"{name} between two batches")

        return refused

    for name in READING:
        monkeypatch.setattr(torch.Tensor, name, refuse(name))
    monkeypatch.setattr(torch, "from_numpy", refuse("from_numpy"))
    monkeypatch.setattr(np, "searchsorted", refuse("searchsorted"))
    count = sum(1 for _ in batches)
    monkeypatch.undo()
    assert count == len(first) - 1 > 10


@pytest.mark.gpu
def test_cuda_never_synchronises_between_cached_batches(network, opened):
    loader, *_ = cached(network, opened("cuda"), "cuda")
    batches = loader.epoch(0)
    next(batches)
    torch.cuda.set_sync_debug_mode("error")
    try:
        assert sum(1 for _ in batches) > 10
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_every_trained_vector_decays(resnet20):
    method = TaskTraining(resnet20)
    assert [group.keys() for group in method.parameter_groups()] == [{"params"}]


def test_shares_of_a_batch():
    assert shares([60000, 7291], 128) == [114, 14]
    assert sum(shares([10, 10, 1000], 64, 2)) == 64 and all(n % 2 == 0 for n in shares([10, 10, 1000], 64, 2))
    with pytest.raises(ConfigError, match="cannot hold a sample of each"):
        shares([5, 5, 5], 2)
