"""Kill at any moment and repeat: bit-identical. Real processes, real SIGKILL."""

import os
import random
import signal
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from recombine.core.errors import ConfigError, Interrupted
from recombine.engine import checkpoint
from recombine.engine.engine import Engine
from recombine.engine.method import Supervised
from recombine.engine.metrics import Accuracy
from recombine.engine.optim import ModelEma, cosine, step
from recombine.run.signals import StopSignals
from tests.core.fitting import Digits, SmallRun, conv_net, fit, same, sgd
from tests.forked import processes


class Slow(Supervised):
    """Also keeps slow weights of its own, draws random numbers in a hook, and takes its time."""

    def __init__(self, pause=0.0):
        super().__init__(conv_net())
        self.slow = ModelEma(self.net, 0.9)
        self.register_buffer("drawn", torch.zeros(4))
        self.pause = pause

    def after_update(self, step):
        self.slow.update()
        time.sleep(self.pause)

    def on_epoch(self, epoch):
        self.drawn.copy_(torch.rand(4))

    def forward(self, batch):
        result = super().forward(batch)
        return result._replace(loss=result.loss * (1 + self.drawn[0] / 100))


def whole_run(folder, pause=0.0, **settings):
    """Two fits of one run with evaluations, as a recipe does; returns both results."""
    defaults = {
        "epochs": 2.4,
        "log_every": 4,
        "save_every_steps": 3,
        "grad_accum_steps": 2,
        "ema_decay": 0.8,
        "grad_clip_norm": 1.0,
    }
    engine = Engine(defaults | settings, SmallRun(Path(folder)))
    measure = engine.evaluator(Digits(range(1400, 1797), 100, train=False), {"accuracy": Accuracy()})

    def slowly(net):
        time.sleep(20 * pause)
        return measure(net)

    results = []
    for name in ("first", "second"):
        method = Slow(pause)
        results.append(engine.fit(method, Digits(range(640)), sgd, cosine, name=name, evaluate=slowly, best="accuracy"))
    return results


def child(folder, pause):
    whole_run(folder, pause)
    os._exit(0)


def everything(folder):
    """What two runs must agree in: all but the clock."""
    kept = {}
    for name in ("first", "second"):
        state = checkpoint.load_latest(Path(folder) / "fits" / name)
        assert state["finished"]
        for clock in ("seconds", "read_seconds"):
            del state["journal"][clock]
        kept[name] = state
    return kept


def equal(one, two):
    if isinstance(one, torch.Tensor):
        return one.dtype == two.dtype and torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(equal(one[key], two[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(two) and all(map(equal, one, two))
    return one == two


def kill_until_done(folder, moments, pause):
    """Start the run again and again, kill each attempt after its moment, let the last one end; returns the kills."""
    kills = 0
    for moment in [*moments, None]:
        process = processes.Process(target=child, args=(str(folder), pause))
        process.start()
        process.join(moment)
        if process.is_alive():
            process.kill()
            process.join()
        kills += process.exitcode == -signal.SIGKILL
        assert process.exitcode in (0, -signal.SIGKILL)
    return kills


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    whole_run(folder)
    return everything(folder)


def test_killed_at_random_moments_ends_bit_identical(tmp_path, reference):
    moments = random.Random(0)
    kills = kill_until_done(tmp_path, [moments.uniform(0.1, 1.2) for _ in range(6)], pause=0.02)
    assert kills >= 3
    assert equal(everything(tmp_path), reference)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_killed_very_often_ends_bit_identical(tmp_path, reference, seed):
    moments = random.Random(seed)
    kills = kill_until_done(tmp_path, [moments.expovariate(2.0) for _ in range(40)], pause=0.05)
    assert kills >= 20
    assert equal(everything(tmp_path), reference)


class Killed(BaseException):
    """In place of SIGKILL where the moment has to be exact."""


def interrupt(monkeypatch, target, call):
    """Let the `call`-th call of `target` (module.Class.method) end the process, as far as it can be seen."""
    module, cls, name = target.rsplit(".", 2)
    owner = getattr(sys.modules[module], cls)
    original, calls = getattr(owner, name), []

    def method(self, *args, **kwargs):
        calls.append(None)
        if len(calls) == call:
            raise Killed
        return original(self, *args, **kwargs)

    monkeypatch.setattr(owner, name, method)


@pytest.mark.parametrize(
    ("target", "call"),
    [
        ("recombine.engine.training.Training.update", 2),  # before the first checkpoint
        ("recombine.engine.training.Training.update", 5),  # within an epoch, between two log points
        ("recombine.engine.training.Training.begin_epoch", 2),  # after an epoch
        ("recombine.engine.training.Training.evaluate", 1),  # before an evaluation
        ("recombine.engine.logging.MetricLogger.evaluated", 2),  # at the end of one
        ("recombine.engine.logging.MetricLogger.evaluated", 3),  # at the end of the last one of the first fit
        ("recombine.engine.training.Training.result", 1),  # between two fits
        ("recombine.engine.training.Training.restore", 2),
        ("recombine.engine.training.Training.save", 8),
    ],
)
def test_stopped_at_exact_moments_ends_bit_identical(tmp_path, monkeypatch, reference, target, call):
    with monkeypatch.context() as patch:
        interrupt(patch, target, call)
        with pytest.raises(Killed):
            whole_run(tmp_path)
    whole_run(tmp_path)
    assert equal(everything(tmp_path), reference)


def test_finished_fits_are_loaded_and_not_repeated(tmp_path, reference):
    first = whole_run(tmp_path)
    train = Digits(range(640))
    second = whole_run(tmp_path)
    for one, two in zip(first, second, strict=True):
        assert same(one.net, two.net) and one._replace(net=None) == two._replace(net=None)
    result = fit(tmp_path / "other", train=train, epochs=1)
    again = fit(tmp_path / "other", train=train, epochs=1)
    assert train.opened == 1 and same(result.net, again.net)


def test_never_starts_over(tmp_path):
    train = Digits(range(640))
    fit(tmp_path, train=train, epochs=1)
    fit(tmp_path, train=train, epochs=1, resume="never")
    assert train.opened == 2


def test_resume_skips_seen_batches_without_reading_them(tmp_path):
    train = Digits(range(640))
    run = SmallRun(tmp_path)
    stop_at(run, 14)
    with pytest.raises(Interrupted):
        fit(tmp_path, run=run, train=train, epochs=3)
    train.asked.clear()
    fit(tmp_path, train=train, epochs=3)
    assert train.asked == [(1, 4), (2, 0)]


def stop_at(run, step, number=signal.SIGTERM):
    """Let `run` be asked to stop after `step` steps."""
    calls = []

    def asked():
        calls.append(None)
        return number if len(calls) == step else None

    run.stop_requested = asked


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR2])
@pytest.mark.parametrize("step", [1, 7, 10, 20])
def test_a_signal_finishes_the_step_saves_and_raises(tmp_path, number, step):
    run = SmallRun(tmp_path / "a")
    stop_at(run, step, number)
    with pytest.raises(Interrupted) as error:
        fit(tmp_path / "a", run=run, epochs=2)
    assert error.value.exit_code == 128 + number
    state = checkpoint.load_latest(tmp_path / "a" / "fits" / "fit")
    assert state["step"] == step and not state["finished"]
    assert same(fit(tmp_path / "a", epochs=2).net, fit(tmp_path / "b", epochs=2).net)


def signalled(folder):
    run = SmallRun(Path(folder))
    with StopSignals() as signals:
        run.stop_requested = lambda: (Path(folder, "ready").touch(), signals.received)[1]  # after the first step
        try:
            fit(folder, run=run, method=Slow(0.05), epochs=3)
        except Interrupted as error:
            os._exit(error.exit_code)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_a_real_signal_stops_a_real_process(tmp_path, number):
    process = processes.Process(target=signalled, args=(str(tmp_path),))
    process.start()
    while not (tmp_path / "ready").exists():
        time.sleep(0.01)
    os.kill(process.pid, number)
    process.join(20)
    assert process.exitcode == 128 + number
    assert 0 < checkpoint.load_latest(tmp_path / "fits" / "fit")["step"] < 30
    ours = fit(tmp_path, method=Slow(), epochs=3).net
    assert same(ours, fit(tmp_path / "whole", method=Slow(), epochs=3).net)


def broken_off(folder):
    def endless(net):
        Path(folder, "evaluating").touch()
        while True:  # short sleeps: Python notices a signal between two calls, one of 600 s could begin after it
            time.sleep(0.01)

    run = SmallRun(Path(folder))
    with StopSignals() as signals:
        run.stop_requested = lambda: signals.received
        try:
            fit(folder, run=run, epochs=2, evaluate=endless)
        except Interrupted as error:
            os._exit(error.exit_code)


def test_a_signal_breaks_off_an_evaluation_and_what_was_trained_is_kept(tmp_path):
    process = processes.Process(target=broken_off, args=(str(tmp_path),))
    process.start()
    while not (tmp_path / "evaluating").exists():
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGTERM)
    process.join(60)
    assert process.exitcode == 143
    assert checkpoint.load_latest(tmp_path / "fits" / "fit")["step"] == 10
    ours = fit(tmp_path, epochs=2, evaluate=lambda net: {"loss": 1.0})
    assert ours.metrics == {"loss": 1.0} and same(ours.net, fit(tmp_path / "whole", epochs=2).net)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"optimizer": partial(sgd, lr=0.2)}, "optimizer.lr: 0.05 in the checkpoint, 0.2 now"),
        ({"optimizer": torch.optim.Adam}, "optimizer: SGD in the checkpoint, Adam now"),
        ({"schedule": partial(cosine, warmup=0.1)}, "schedule.warmup: absent in the checkpoint, 0.1 now"),
        ({"schedule": partial(step, milestones=[0.5])}, "schedule: cosine in the checkpoint, step now"),
        ({"epochs": 4}, "steps: 30 in the checkpoint, 40 now"),
        ({"grad_accum_steps": 2}, "engine.grad_accum_steps: 1 in the checkpoint, 2 now"),
        ({"precision": "bf16"}, "engine.precision: fp32 in the checkpoint, bf16 now"),
        ({"ema_decay": 0.9}, "engine.ema_decay: None in the checkpoint, 0.9 now"),
        ({"train": Digits(range(1, 641))}, "training data: digits-640-204480 in the checkpoint, digits-640-205120 now"),
        ({"train": Digits(range(640), 32)}, "batch_size: 64 in the checkpoint, 32 now"),
        ({"method": Slow()}, "method: Supervised in the checkpoint, Slow now"),
        ({"method": Supervised(conv_net(norm=False))}, "net.2.weight: torch.float32 [8] in the checkpoint, absent now"),
    ],
)
def test_another_training_is_refused_and_says_why(tmp_path, change, line):
    run = SmallRun(tmp_path)
    stop_at(run, 5)
    with pytest.raises(Interrupted):
        fit(tmp_path, run=run, epochs=3)
    with pytest.raises(ConfigError) as error:
        fit(tmp_path, **{"epochs": 3} | change)
    assert line in str(error.value) and "engine.resume=never" in str(error.value)


def test_what_does_not_change_the_result_may_change(tmp_path):
    run = SmallRun(tmp_path)
    stop_at(run, 5)
    with pytest.raises(Interrupted):
        fit(tmp_path, run=run, epochs=2)
    unfused = partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=5e-4)
    assert fit(tmp_path, epochs=2, optimizer=unfused, log_every=7, save_every_minutes=1).steps == 20


def test_time_writes_checkpoints_too(tmp_path, monkeypatch):
    saved = []
    original = checkpoint.save
    monkeypatch.setattr(
        checkpoint, "save", lambda folder, state: saved.append(state["step"]) or original(folder, state)
    )
    now = [0.0]
    monkeypatch.setattr("recombine.engine.training.time.monotonic", lambda: now[0])

    class Ticking(Supervised):
        def after_update(self, step):
            now[0] += 60.0

    fit(tmp_path, method=Ticking(conv_net()), epochs=2, save_every_minutes=6.5)
    assert saved == [7, 14, 20]
