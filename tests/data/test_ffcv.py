"""FFCV's pitfalls, each with the guard that holds it."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from recombine.core.errors import RecombineError
from recombine.data import open_data
from tests import forked

pytest.importorskip("ffcv")
from recombine.data import ffcv as ours
from recombine.data.write import ensure

ROOT = Path(__file__).parents[2]


@pytest.fixture
def loader(opened):
    return opened(kind="ffcv").loader("train", 32, train=True)


def threads():
    gc.collect()
    return {thread for thread in threading.enumerate() if isinstance(thread, ours._Epoch)}


def test_early_break_leaves_no_thread(loader):
    for _ in range(5):
        for _batch in loader.epoch(0):
            break
    assert threads() == set()


def test_close_ends_unfinished_epochs_and_may_be_called_twice(loader):
    kept = [loader.epoch(e) for e in range(3)]
    for stream in kept:
        next(stream)
    assert len(threads()) == 3
    loader.close()
    loader.close()
    assert threads() == set()
    assert list(kept[0]) == []
    assert len(list(loader.epoch(0))) == len(loader)  # a closed loader can be used again


def test_consumer_that_never_asks_again_does_not_hold_the_thread(loader):
    stream = loader.epoch(0, len(loader) - 2)  # fewer batches than buffers: the thread waits to put its end mark
    next(stream)
    stream.close()
    assert threads() == set()


def test_failure_in_the_pipeline_is_raised_and_not_waited_for(loader, monkeypatch):
    monkeypatch.setattr(ours, "SECONDS", 0.05)
    stream = loader.epoch(0)
    next(stream)
    calls = []

    def broken(*_args, **_kwargs):
        calls.append(1)
        raise ValueError("bad sector")

    monkeypatch.setattr(ours.EpochIterator, "run_pipeline", broken)
    start = time.monotonic()
    with pytest.raises(RecombineError, match=r"reading .*digits-train.*beton failed: ValueError\('bad sector'\)"):
        list(stream)
    assert calls and time.monotonic() - start < 5
    assert threads() == set()


def test_torch_threads_stay_as_they_were(opened):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        loader = opened(kind="ffcv", workers=1).loader("train", 32, train=True)
        seen = {torch.get_num_threads() for _ in loader.epoch(0)}
        assert seen == {3} and torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


IMPORTING = """
import sys, torch
torch.set_num_threads(3)
print("ffcv" in sys.modules)
import recombine.data.ffcv
print(torch.get_num_threads())
"""


def test_importing_ffcv_keeps_torch_threads():
    done = forked.call(exec, IMPORTING)
    assert done.returncode == 0 and done.stdout == "False\n3\n", done.stderr


def read_on_one_core(cache):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    where = {"data_root": ".", "cache_root": str(cache), "seed": 0, "device": "cpu"}
    loader = open_data({"name": "digits"}, loader={"kind": "ffcv"}, **where).loader("test", 50, train=False)
    print(loader.workers, sum(len(batch.index) for batch in loader.epoch(0)))


def test_more_workers_than_cores_are_refused_or_clamped(opened):
    from recombine.core.errors import ConfigError

    with pytest.raises(ConfigError, match=r"loader.workers=10000: auto or a whole number of at least 0 and at most"):
        opened(kind="ffcv", workers=10_000)
    done = forked.call(read_on_one_core, opened(kind="ffcv").split("test").betons.parent)
    assert done.stdout == "1 300\n", done.stderr


def test_one_loader_object_serves_all_epochs(loader):
    list(loader.epoch(0))
    inner, code = loader._loader, loader._loader.code
    list(loader.epoch(1))
    assert loader._loader is inner and loader._loader.code is code
    assert ours._kernel(False) is ours._kernel(False)


def test_two_epochs_at_once_do_not_mix(opened, photos):
    loader = opened("photos", "ffcv", source="folder", root=photos.parent, augment="crop_resize")
    loader = loader.loader("train", 4, train=True, size=32)
    alone = [[batch.images for batch in loader.epoch(e)] for e in (0, 1)]
    mixed = list(zip(loader.epoch(0), loader.epoch(1), strict=True))
    for step, (zero, one) in enumerate(mixed):
        assert torch.equal(zero.images, alone[0][step]) and torch.equal(one.images, alone[1][step])


def test_decoder_is_pillows_and_not_the_fast_approximation(opened, data_root):
    """FFCV's own decoder differs from Pillow by several grey levels; the one used here by none."""
    import cv2
    from ffcv.libffcv import imdecode

    split = opened("imagenette160", "ffcv", source="parquet", root=data_root).split("test")
    data = np.frombuffer(split.samples[0], np.uint8)
    exact, fast = split.image(0), np.empty_like(split.image(0))
    height, width = exact.shape[:2]
    imdecode(data, fast, height, width, height, width, 0, 0, 1, 1, False, False)
    assert np.abs(fast.astype(int) - exact).max() >= 2
    assert np.array_equal(cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1], exact)


def test_any_ffcv_reader_opens_our_files(opened):
    import ffcv

    split = opened(kind="ffcv").split("test")
    before = torch.get_num_threads()
    plain = ffcv.Loader(str(ensure(split)), batch_size=50, num_workers=1, drop_last=False)
    images, labels, index = (torch.cat(parts) for parts in zip(*([t.clone() for t in b] for b in plain), strict=True))
    torch.set_num_threads(before)
    assert np.array_equal(images[..., 0].numpy(), split.samples.images)
    assert np.array_equal(labels[:, 0].numpy(), split.samples.labels)
    assert index[:, 0].tolist() == list(range(300))


COMPILED = """
import sys, torch
from recombine.data import open_data
from recombine.data import ffcv
import pathlib
root, kind, workers = sys.argv[1], sys.argv[2], int(sys.argv[3])
node = {"name": "photos", "source": "folder", "augment": "crop_resize", "download": False}
data = open_data(node, loader={"kind": kind, "workers": workers}, data_root=root, cache_root=root + "/cache", seed=0,
                 device="cpu")
loader = data.loader("train", 5, train=True, size=40)
for epoch in (0, 1, 0):
    print([hash(batch.images.numpy().tobytes()) for batch in loader.epoch(epoch)])
other = data.loader("test", 4, train=False, size=64)
print([hash(batch.images.numpy().tobytes()) for batch in other.epoch(0)])
if kind == "ffcv":
    assert len(ffcv._kernel(workers > 1).signatures) == 1, "compiled more than once"
"""


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_compiled_code_gives_the_same_and_follows_the_epoch(photos, workers):
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "0", "PYTHONHASHSEED": "0"}
    if workers > len(os.sched_getaffinity(0)):
        pytest.skip("needs two cores")

    def lines(kind, count, environment):
        command = [sys.executable, "-c", COMPILED, str(photos.parent), kind, str(count)]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    compiled = lines("ffcv", workers, environment)
    assert compiled == lines("torch", 0, {**environment, "NUMBA_DISABLE_JIT": "1"})
    assert compiled[0] == compiled[2] != compiled[1]
