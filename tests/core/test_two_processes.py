"""Every method of every entry gives the same on two processes as on one."""

import os
import socket

import numpy as np
import pytest
from hydra import compose
from safetensors.numpy import load_file
from torch.nn.modules.batchnorm import _BatchNorm

from recombine import models
from recombine.cli.entries import ENTRIES
from recombine.cli.search_path import initialize_entry
from recombine.core.files import CONFIG_DIR
from recombine.core.results import read_rows
from scripts.campaigns.forks import fork
from scripts.campaigns.runs import RUNS, make_networks, start

pytestmark = pytest.mark.slow


def options(group):
    """The names of a group's options, as they are given on the command line."""
    folder = CONFIG_DIR / group
    return [str(file.relative_to(folder).with_suffix("")) for file in sorted(folder.rglob("[!_]*.yaml"))]


def of(entry, key, group, *words):
    """A run with each option of a group."""
    return [(entry, [f"{key}={name}", *words, *MORE.get(f"{key}={name}", [])]) for name in options(group)]


PATCH = "tasks=[{name: low, dataset: digits, class_subset: [5,6,7]}, {name: few, dataset: digits, class_subset: [0,1]}]"
RESIDUAL = "model.name=residual"
"""Has the blocks that modules need."""
AVERAGED = "engine.ema_decay=0.9"
FAST = "optimizer.lr=0.1"
"""Weights move by more than what two processes may differ by. """
BRIEF = "engine.max_steps=2"
"""For losses in which rounding grows fiftyfold in a step: one process that sums in another order is as far off soon."""
MAPS = [f"method.loss.{whose}_modules=[pool1,pool2]" for whose in ("student", "teacher")]
LINEAR = "optimizer=sgd"
"""Adam turns the rounding of a gradient that is 0, as of a bias before a BatchNorm, into a step."""
MORE = {
    **{"method=bi_kd": [BRIEF], "method=paper/cd": [BRIEF], "loss=at": [BRIEF, *MAPS]},
    **{"method=delta_4": ["method.modules=3"], "method=series_adapter": [LINEAR]},
}
"""What a run needs beside its option."""
FILES = ("method=from_file", "method=compose")
# Not here: all_skips_random draws numbers for each evaluation; FILES put together what other runs left. Five and two
# classes get 20 and 8 samples of a batch of 28 on one process and on two; other shares are rounded to the processes.
CASES = [
    *(("pretrain", ["optimizer.lr=0.01", *words]) for words in ([], [AVERAGED], ["engine.grad_accum_steps=2"])),
    ("flips", []),
    *of("transfer", "method", "transfer/method", FAST),
    *of("transfer", "mask", "transfer/mask", "method=distill", "dataset.val_fraction=0.2", FAST),
    *of("transfer", "loss", "transfer/loss", "method=distill", FAST),
    ("transfer", ["candidates=[second,third]"]),
    *(("multi_teacher", [f"combine={way}", FAST]) for way in ("sequential", "parallel", "soup")),
    *(case for case in of("patch", "method", "patch/method", RESIDUAL) if "all_skips_random" not in case[1][0]),
    *(("patch", [f"protocol={name}", "method=delta", PATCH, RESIDUAL]) for name in ("joint", "sequential")),
    *of("patch", "regularizer", "patch/regularizer", "protocol=end_to_end", "method=delta", RESIDUAL),
    ("patch", ["protocol=scratch", "method=delta", "model.name=resnet8"]),
    *of("stitch", "method", "stitch/method"),
    *of("stitch", "search", "stitch/search"),
    *(case for case in of("pnc", "method", "pnc/method", "batch_size=28") if case[1][0] not in FILES),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("processes")
    make_networks(place)
    node = {"name": "resnet8", "width": 8, "size": 16, "mean": [0.3] * 3, "std": [0.3] * 3, "weights": None}
    models.save(models.build(node, classes=10), place / "weights/residual.safetensors", {})
    return place


def sum_exactly():
    """torch sums over images with channels last in single precision, which is good to four digits."""
    forward = _BatchNorm.forward
    _BatchNorm.forward = lambda norm, value: forward(norm, value.contiguous())


def known(entry, words):
    """What a small run of an entry sets, without what the options that `words` choose do not have."""
    with initialize_entry(entry):
        cfg = compose(ENTRIES[entry].config, words)
    keys = [word.partition("=")[0].rpartition(".") for word in RUNS[entry]]
    return [
        word
        for word, (group, _, key) in zip(RUNS[entry], keys, strict=True)
        if group not in ("method", "search") or key in cfg[group]
    ]


def processes(entry, words, folder, place, count):
    """Exit code of a run on one process, or on two that gloo joins."""

    def work():
        sum_exactly()
        if count == 2:
            with socket.socket() as found:
                found.bind(("127.0.0.1", 0))
                port = str(found.getsockname()[1])
            os.environ |= {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            other = os.fork()
            os.environ |= {"RANK": str(int(not other)), "LOCAL_RANK": str(int(not other))}
        code = start(entry, [*known(entry, words), *words], folder, place)
        return code or (os.waitstatus_to_exitcode(os.waitpid(other, 0)[1]) if count == 2 and other else 0)

    code = fork(folder / place / "log", work)
    return code, (folder / place / "log").read_text(encoding="utf-8")


def found(folder):
    """Metrics of the rows, and every weight that was written, by name."""
    metrics = {}
    for row in read_rows(folder):
        name = " ".join(f"{key}={value}" for key, value in sorted(row.cell.items()))
        metrics |= {f"{name}: {key}": value for key, value in row.metrics.items() if "second" not in key}
    files = [file for file in folder.rglob("*.safetensors") if not {"cache", "previous"} & {*file.parts}]
    weights = {file.name: load_file(file) for file in files if not file.is_symlink()}
    return metrics, {f"{name} {key}": value for name, state in weights.items() for key, value in state.items()}


@pytest.mark.parametrize(("entry", "words"), CASES, ids=[" ".join([entry, *words]) for entry, words in CASES])
def test_two_processes_equal_one(folder, request, entry, words):
    one, two = (f"{CASES.index((entry, words))} {count}" for count in (1, 2))
    for place, count in ((one, 1), (two, 2)):
        code, log = processes(entry, words, folder, place, count)
        assert code == 0 and "Traceback" not in log, log[-3000:]
    (metrics, weights), (metrics_two, weights_two) = found(folder / one), found(folder / two)
    assert metrics.keys() == metrics_two.keys() and weights.keys() == weights_two.keys()
    apart = {key: (weights[key], weights_two[key]) for key in weights}
    apart = {key: float(np.abs(a - b).max()) for key, (a, b) in apart.items() if not near(a, b, 1e-3)}
    apart |= {
        key: (value, metrics_two[key]) for key, value in metrics.items() if not near(value, metrics_two[key], 0.01)
    }
    assert not apart


def near(one, two, tolerance):
    return np.allclose(one, two, rtol=tolerance, atol=tolerance, equal_nan=True)
