"""The loop never waits between log points, leaks nothing, and shows what it does."""

import io
import logging
import os
import re
import threading
import time
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from recombine.engine.engine import Engine
from recombine.engine.method import Supervised
from recombine.engine.metrics import Accuracy
from recombine.engine.optim import cosine
from tests.core.fitting import Digits, SmallRun, conv_net, fit, same, sgd


def evaluator(engine):
    return engine.evaluator(Digits(range(1400, 1797), 100, train=False), {"accuracy": Accuracy()})


@contextmanager
def no_reading(monkeypatch):
    """Let every way from a tensor to a Python number fail."""

    def refuse(name):
        def refused(*_, **__):
            raise AssertionError(f"Tensor.{name} between two log points")

        return refused

    with monkeypatch.context() as patch:
        for name in ("item", "cpu", "tolist", "numpy", "__bool__", "__float__", "__int__", "__index__", "__array__"):
            patch.setattr(torch.Tensor, name, refuse(name))
        yield


def test_the_host_never_waits_between_log_points(tmp_path, monkeypatch):
    guarded, log_every, count = [], 5, 0

    class Guarded(Supervised):
        """Forbids reading from the first forward after a log point to the last update before the next."""

        def forward(self, batch):
            nonlocal count
            if count % log_every == 0:
                guarded.append(no_reading(monkeypatch))
                guarded[-1].__enter__()
            count += 1
            return super().forward(batch)

        def after_update(self, step):
            if count % log_every == 0:
                guarded.pop().__exit__(None, None, None)

    ran = []
    monkeypatch.setattr("recombine.engine.metric_buffer.MetricBuffer.read", watch(ran))
    fit(tmp_path, method=Guarded(conv_net()), epochs=2, log_every=log_every, ema_decay=0.99, grad_clip_norm=1.0)
    assert count == 20 and len(ran) == 4 and not guarded


def watch(ran):
    from recombine.engine.metric_buffer import MetricBuffer

    original = MetricBuffer.read

    def read(self):
        ran.append(len(self.checked))
        return original(self)

    return read


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_cuda_never_synchronises_between_log_points(tmp_path, precision):
    device = torch.device("cuda")

    class Guarded(Supervised):
        def forward(self, batch):
            torch.cuda.set_sync_debug_mode("error" if 2 <= self.count % 10 < 9 else "default")
            self.count += 1
            return super().forward(batch)

        def after_update(self, step):
            if self.count % 10 == 9:
                torch.cuda.set_sync_debug_mode("default")

    method = Guarded(conv_net())
    method.count = 0
    train = Digits(range(640), device=device)
    real = train.epoch

    def epoch(number, start=0):  # the loader of this test copies indices, which waits
        return iter_on(list(map(lambda b: type(b)(*(v.clone() for v in b)), real(number, start))))

    def iter_on(batches):
        yield from batches

    train.epoch = epoch
    try:
        run = SmallRun(tmp_path, device=device)
        fit(tmp_path, run=run, method=method, train=train, epochs=3, log_every=10, ema_decay=0.99, precision=precision)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_twenty_fits_leave_no_threads_and_no_open_files(tmp_path):
    def counts():
        return threading.active_count(), len(os.listdir("/proc/self/fd"))

    fit(tmp_path / "first", max_steps=2)
    before = counts()
    for number in range(20):
        train = Digits(range(640))
        fit(tmp_path / str(number), train=train, max_steps=2, save_every_steps=1)
        assert train.opened == train.closed == 1
    assert counts() == before


def test_one_line_per_epoch_where_there_is_no_terminal(tmp_path, caplog):
    engine = Engine({"epochs": 2, "log_every": 3}, SmallRun(tmp_path))
    with caplog.at_level(logging.INFO, logger="recombine.engine.logging"):
        engine.fit(Supervised(conv_net()), Digits(range(640)), sgd, cosine, evaluate=evaluator(engine))
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2
    for word in ("fit: epoch 1", "loss ", "val accuracy", "images/s"):
        assert word in lines[0]


def test_a_bar_where_there_is_one(tmp_path, monkeypatch):
    screen = io.StringIO()
    screen.isatty = lambda: True
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setattr("recombine.engine.logging.ProgressBar.refresh_seconds", 0.0)
    threads = threading.active_count()
    lines, level = logging.StreamHandler(screen), logging.root.level
    logging.root.addHandler(lines)
    logging.root.setLevel(logging.INFO)
    fit(tmp_path, epochs=2, log_every=3)
    logging.root.removeHandler(lines)
    logging.root.setLevel(level)
    assert lines.stream is screen and screen.getvalue().count("fit: epoch") == 2
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    assert not re.search(r"[^\r\n]fit: epoch", plain)  # a line of its own, not the end of the bar
    assert "20/20" in screen.getvalue() and "images/s" in screen.getvalue()
    for _ in range(100):  # rich tells its thread to end without waiting for it
        if threading.active_count() == threads:
            break
        time.sleep(0.02)
    assert threading.active_count() == threads


def test_the_tracker_gets_the_log_points(tmp_path):
    logged = []

    class Recorder:
        def log(self, values, step, prefix=""):
            logged.append((step, {f"{prefix}{name}": value for name, value in values.items()}))

    run = SmallRun(tmp_path, tracker=Recorder())
    fit(tmp_path, run=run, epochs=2, log_every=4, name="probe", evaluate=lambda net: {"accuracy": 50.0})
    train = [(step, values) for step, values in logged if "train/probe/loss" in values]
    assert [step for step, _ in train] == [4, 8, 10, 12, 16, 20]
    assert {"train/probe/epoch", "train/probe/lr", "time/probe/images_per_second", "train/probe/accuracy"} <= train[0][
        1
    ].keys()
    assert [(step, v["val/probe/accuracy"]) for step, v in logged if "val/probe/accuracy" in v] == [
        (10, 50.0),
        (20, 50.0),
    ]
    assert all(isinstance(value, (int, float)) for _, values in logged for value in values.values())


def test_fits_do_not_depend_on_what_drew_random_numbers_before(tmp_path):
    one = fit(tmp_path / "a", max_steps=3).net
    torch.manual_seed(99)
    method = Supervised(conv_net())
    torch.rand(7)
    assert same(one, fit(tmp_path / "b", method=method, max_steps=3).net)
    other = fit(tmp_path / "c", run=SmallRun(tmp_path / "c", seed=1), max_steps=3).net
    assert not same(one, other)  # other dropout masks


def test_what_an_evaluation_draws_does_not_move_the_training(tmp_path):
    one = fit(tmp_path / "a", epochs=2, evaluate=lambda net: {"loss": 1.0}).net
    assert same(one, fit(tmp_path / "b", epochs=2, evaluate=lambda net: {"loss": float(torch.rand(7).sum())}).net)


def test_modules_have_no_stale_gradients_afterwards(tmp_path):
    net: nn.Module = fit(tmp_path, max_steps=2).net
    assert not net.training and all(value.grad is None for value in net.parameters())


def test_the_one_fit_of_a_run_has_no_name_in_its_charts(tmp_path):
    logged = []

    class Recorder:
        def log(self, values, step):
            logged.append(values)

    fit(tmp_path, run=SmallRun(tmp_path, tracker=Recorder()), epochs=1, log_every=4)
    assert {"train/loss", "train/lr", "train/epoch", "time/images_per_second"} <= logged[0].keys()
