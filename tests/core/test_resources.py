"""Long trainings need no more memory, files or threads as they go on, and a killed one leaves no process behind."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import numpy as np
import psutil
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
STEPS = 2000
SECONDS = 500


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Two classes of JPEG files of several sizes, which the loaders decode anew in every epoch."""
    root = tmp_path_factory.mktemp("photographs")
    random = np.random.default_rng(0)
    for split, count in (("train", 80), ("test", 20)):
        for label in ("dark", "light"):
            folder = root / "mine" / split / label
            folder.mkdir(parents=True)
            for k in range(count):
                low = 120 * (label == "light")
                pixels = random.integers(low, low + 120, (40 + k % 7, 44, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{k}.jpg")
    return root


@pytest.fixture
def start(photographs, tmp_path):
    """Start a training in a process of its own, as a user does; whatever is left of it is ended with the test."""
    started = []

    def begin(*words):
        roots = [f"{key}_root={tmp_path}" for key in ("weights", "cache", "output")]
        data = [f"data_root={photographs}", "dataset=folder", "dataset.name=mine", "dataset.folder=mine"]
        quick = ["model=cnn", "model.size=16", "model.widths=[4,4,4]", "batch_size=32", "logger=none", "device=cpu"]
        often = ["engine.log_every=5", "engine.save_every_steps=200", "engine.eval_every=20", "engine.epochs=400"]
        command = [sys.executable, "-m", "recombine.cli.command", "pretrain", *roots, *data, *quick, *often, *words]
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "NUMBA_DISABLE_JIT": "0"}
        with open(tmp_path / "log", "w", encoding="utf-8") as log:
            process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=log)
        started.append(psutil.Process(process.pid))
        return process, started[-1]

    yield begin
    for process in started:
        if process.is_running():
            process.kill()


def step_of(folder):
    """The latest step that a run in a folder has logged, or 0."""
    files = list(folder.glob("pretrain/*/metrics.jsonl"))
    lines = files[0].read_text(encoding="utf-8").splitlines() if files else []
    steps = [json.loads(line).get("step", 0) for line in lines[-5:] if line.endswith("}")]
    return max(steps, default=0)


def used(process):
    """What a process and its children hold: bytes of its own memory, open files, threads, children."""
    with process.oneshot():
        return process.memory_full_info().uss, process.num_fds(), process.num_threads(), len(process.children())


@pytest.mark.slow
@pytest.mark.parametrize("loader", ["ffcv", "torch"])
def test_nothing_grows_over_two_thousand_steps(tmp_path, start, loader):
    if loader == "ffcv":
        pytest.importorskip("ffcv")
    process, watched = start(f"loader={loader}", "loader.workers=1", f"engine.max_steps={STEPS}")
    seen, deadline = [], time.monotonic() + SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            seen.append((step_of(tmp_path), *used(watched)))
        except psutil.Error:
            break
        time.sleep(0.3)
    assert process.wait(60) == 0, (tmp_path / "log").read_text()[-2000:]
    early = [row[1:] for row in seen if STEPS // 4 <= row[0] < STEPS // 2]
    late = [row[1:] for row in seen if STEPS * 3 // 4 <= row[0] < STEPS]
    assert len(early) > 5 and len(late) > 5
    (memory, files, threads, children), after = (
        [median(column) for column in zip(*rows, strict=True)] for rows in (early, late)
    )
    print(f"\n{loader}: {(after[0] - memory) / 2**20:+.1f} MiB of {memory / 2**20:.0f}, files {files} to {after[1]}")
    assert after[0] - memory < 4 * 2**20, "bytes of memory"
    assert after[1] <= files and after[2] <= threads and after[3] <= children


@pytest.mark.slow
@pytest.mark.parametrize("loader", ["ffcv", "torch"])
def test_a_killed_training_leaves_no_process(tmp_path, start, loader):
    if loader == "ffcv":
        pytest.importorskip("ffcv")
    process, watched = start(f"loader={loader}", "loader.workers=2", "engine.max_steps=100000")
    children, deadline = [], time.monotonic() + SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        children = watched.children(recursive=True)
        if step_of(tmp_path) > 20 and (children or loader == "ffcv"):
            break
        time.sleep(0.02)
    assert process.poll() is None, (tmp_path / "log").read_text()[-2000:]
    assert children or loader == "ffcv", "torch decodes in processes, FFCV in threads"
    process.kill()
    process.wait(60)
    _, left = psutil.wait_procs(children, timeout=30)
    assert left == []
    assert not [p.pid for p in psutil.process_iter(["cmdline"]) if str(tmp_path) in " ".join(p.info["cmdline"] or ())]
