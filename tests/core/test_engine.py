"""The training loop against hand-written ones, its switches, its promises about waiting, freezing and leaking."""

import io
import json
import logging
import os
import threading
import time
import zlib
from contextlib import contextmanager
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from src.core import checkpoint
from src.core.addressed import key, permutation
from src.core.engine import Engine, EngineConfig
from src.core.errors import ConfigError, Diverged
from src.core.method import Method, Supervised
from src.core.metrics import Accuracy
from src.core.optim import constant, cosine
from src.core.types import Step
from tests.core.fitting import Digits, SmallRun, conv_net, fit, same, sgd


def evaluator(engine):
    return engine.evaluator(Digits(range(1400, 1797), 100, train=False), {"accuracy": Accuracy()})


def by_hand(steps, optimizer=sgd, net=None, each=lambda net: None, **loader):
    """The loop everybody writes; returns the net."""
    net, loader = net or conv_net().to(memory_format=torch.channels_last), Digits(range(640), **loader)
    update = optimizer(net.parameters())
    schedule = cosine(update, steps)
    torch.manual_seed(key(0, 0, zlib.crc32(b"fit")))
    for epoch in range(100):
        for batch in loader.epoch(epoch):
            F.cross_entropy(net(batch.images), batch.labels).backward()
            update.step()
            update.zero_grad()
            schedule.step()
            each(net)
            steps -= 1
            if steps == 0:
                return net.eval()


@pytest.mark.parametrize("optimizer", [sgd, partial(torch.optim.AdamW, lr=2e-3, fused=True), torch.optim.Adam])
def test_equals_a_loop_written_by_hand_bit_for_bit(tmp_path, optimizer):
    assert same(fit(tmp_path, epochs=2.5, optimizer=optimizer, log_every=7).net, by_hand(25, optimizer))


def test_channels_last_is_only_a_layout(tmp_path):
    plain = fit(tmp_path / "a", channels_last=False, max_steps=5).net
    assert plain[1].weight.is_contiguous()
    last = fit(tmp_path / "b", max_steps=5).net
    assert last[1].weight.is_contiguous(memory_format=torch.channels_last)
    for one, two in zip(plain.parameters(), last.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4)


def test_accumulation_equals_a_large_batch_also_in_the_last_partial_group(tmp_path):
    # 10 batches of 64 in groups of 4, 4 and 2
    plain = partial(conv_net, dropout=0.0, norm=False)
    train = Digits(range(640), 64)
    ours = fit(tmp_path, method=Supervised(plain()), train=train, epochs=2, accumulate=4).net
    net = plain()
    update = sgd(Supervised(net).parameter_groups())
    schedule = cosine(update, 6)
    for epoch in range(2):
        order = train.indices[permutation(0, epoch, 640)]
        for group in (order[:256], order[256:512], order[512:]):
            F.cross_entropy(net(train.images[group]), train.labels[group]).backward()
            update.step()
            update.zero_grad()
            schedule.step()
    for one, two in zip(ours.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


def test_steps_epochs_and_records(tmp_path):
    hooks = []

    class Watched(Supervised):
        def on_epoch(self, epoch):
            hooks.append(("epoch", epoch))

        def after_update(self, step):
            hooks.append(("step", step))

    train = Digits(range(640))
    engine = Engine({"epochs": 2.25, "log_every": 3, "eval_every": 2}, SmallRun(tmp_path))
    result = engine.fit(Watched(conv_net()), train, sgd, cosine, evaluate=evaluator(engine))
    assert result.steps == 23  # 22.5 steps, rounded up
    assert [hook[1] for hook in hooks if hook[0] == "epoch"] == [0, 1, 2]
    assert [hook[1] for hook in hooks if hook[0] == "step"] == list(range(23))
    assert hooks.index(("epoch", 1)) == hooks.index(("step", 9)) + 1
    assert train.asked == [(0, 0), (1, 0), (2, 0)] and train.opened == train.closed
    assert [record["step"] for record in result.history] == [10, 20, 23]
    assert ["val/top1" in record for record in result.history] == [False, True, True]
    assert result.metrics == {"top1": result.history[-1]["val/top1"]}
    assert result.metrics["top1"] > 60 and result.seconds > 0 and result.images_per_second > 0
    assert engine.run.stats["images_per_second"] == result.images_per_second


def test_recorded_means_are_those_of_the_steps(tmp_path):
    seen = []

    class Watched(Supervised):
        def forward(self, batch):
            step = super().forward(batch)
            seen.append(step.loss.item())
            self.last = step.loss.detach()
            return Step(step.loss, {**step.logs, "reused": self.count})

        def after_update(self, step):
            self.count += 1  # in place: what was handed over changes afterwards

    method = Watched(conv_net())
    method.register_buffer("count", torch.zeros(()))
    history = fit(tmp_path, method=method, epochs=2, log_every=4).history
    for epoch, record in enumerate(history):
        assert record["train/loss"] == pytest.approx(sum(seen[10 * epoch : 10 * epoch + 10]) / 10, rel=1e-5)
    assert [record["train/reused"] for record in history] == [4.5, 14.5]


def test_zero_epochs_evaluate_the_net_as_it_is(tmp_path):
    engine = Engine({"epochs": 0}, SmallRun(tmp_path))
    net = conv_net()
    result = engine.fit(Supervised(net), Digits(range(640)), sgd, cosine, evaluate=evaluator(engine))
    assert result.steps == 0 and result.metrics == result_of(net) and same(net, conv_net())


def result_of(net):
    data = Digits(range(1400, 1797))
    with torch.no_grad():
        logits = net.eval()(data.images[1400:])
    return {"top1": pytest.approx(100 * (logits.argmax(1) == data.labels[1400:]).double().mean().item())}


def test_clipping_bounds_the_gradient(tmp_path):
    norms = []

    class Watched(Supervised):
        def after_update(self, step):
            moved = torch.cat([(p - q).flatten() for p, q in zip(self.net.parameters(), self.before, strict=True)])
            norms.append(moved.norm().item())
            self.before = [p.detach().clone() for p in self.net.parameters()]

    method = Watched(conv_net(norm=False))
    method.before = [p.detach().clone() for p in method.net.parameters()]
    plain = partial(torch.optim.SGD, lr=1.0)
    fit(tmp_path, method=method, optimizer=plain, schedule=constant, clip_norm=0.05, max_steps=8)
    assert max(norms) == pytest.approx(0.05, rel=1e-3)


def test_ema_is_torch_s_and_is_what_gets_evaluated_and_published(tmp_path):
    averages = None

    def update(net):
        averages.update_parameters(net)

    net = conv_net().to(memory_format=torch.channels_last)
    averages = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    averages.update_parameters(net)  # torch's first update copies: let it be the initial weights, as in ours
    raw = by_hand(20, net=net, each=update)

    engine = Engine({"epochs": 2, "ema": 0.9}, SmallRun(tmp_path))
    method, measured = Supervised(conv_net()), []

    def measure(evaluated):
        measured.append([p.detach().clone() for p in evaluated.parameters()])
        return {}

    result = engine.fit(method, Digits(range(640)), sgd, cosine, evaluate=measure)
    reference = averages.module.state_dict()
    for name, value in result.net.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, reference[name], rtol=1e-5, atol=1e-6)
        else:
            assert value.dtype == torch.int64 and value.item() == 20
    assert all(torch.equal(p, q) for p, q in zip(measured[-1], result.net.parameters(), strict=True))
    assert not same(result.net, raw)
    # evaluating in between left the trained weights alone
    state = checkpoint.load_latest(tmp_path / "fits" / "fit")
    assert all(torch.equal(state["method"][f"net.{name}"], value) for name, value in raw.state_dict().items())


@pytest.mark.parametrize(("best", "chosen"), [("score", 2), ("-score", 1), (None, 4)])
def test_best_weights_are_published(tmp_path, best, chosen):
    states = []

    def measure(net):
        states.append({name: value.clone() for name, value in net.state_dict().items()})
        return {"score": {1: -5.0, 2: 9.0, 3: float("nan"), 4: 3.0}[len(states)]}

    result = fit(tmp_path / "a", epochs=4, evaluate=measure, best=best)
    assert all(torch.equal(value, states[chosen - 1][name]) for name, value in result.net.state_dict().items())
    states.clear()
    last = fit(tmp_path / "b", epochs=4, evaluate=measure, best=best, keep_best=False)
    assert all(torch.equal(value, states[3][name]) for name, value in last.net.state_dict().items())
    assert last.metrics == {"score": 3.0}


def test_best_must_be_measured(tmp_path):
    with pytest.raises(ConfigError, match="best=top5 is not measured; the evaluation gives top1"):
        fit(tmp_path, evaluate=lambda net: {"top1": 1.0}, best="top5", max_steps=1)


class WithTeacher(Method):
    """A frozen net with BatchNorm and dropout beside the trained one, and a frozen part inside it."""

    frozen = ("teacher", "net.1")

    def __init__(self):
        super().__init__(conv_net(seed=1))
        self.teacher = conv_net(seed=2)

    def forward(self, batch):
        target = self.teacher(batch.images).softmax(1)
        loss = F.cross_entropy(self.net(batch.images), target)
        return Step(loss, {"loss": loss.detach()})


def test_frozen_parts_stay_and_are_not_saved(tmp_path):
    method, fresh = WithTeacher(), WithTeacher()
    fit(tmp_path, method=method, epochs=2, evaluate=lambda net: {})
    assert same(method.teacher, fresh.teacher) and same(method.net[1], fresh.net[1])
    assert not torch.equal(method.net[5].weight, fresh.net[5].weight)
    state = checkpoint.load_latest(tmp_path / "fits" / "fit")
    assert not any(name.startswith(("teacher.", "net.1.")) for name in state["method"])
    assert "net.2.running_mean" in state["method"]


def test_nothing_to_train_and_wrong_batches_are_config_errors(tmp_path):
    net = conv_net().requires_grad_(False)
    with pytest.raises(ConfigError, match="no parameter that is trained"):
        fit(tmp_path, method=Supervised(net))
    with pytest.raises(ConfigError, match="10 training samples do not fill"):
        fit(tmp_path, train=Digits(range(10)))
    with pytest.raises(ConfigError, match="shared equally by 3"):
        fit(tmp_path, run=SmallRun(tmp_path, world=3))


def test_a_fit_name_is_used_once(tmp_path):
    engine = Engine({"max_steps": 1}, SmallRun(tmp_path))
    engine.fit(Supervised(conv_net()), Digits(range(640)), sgd, cosine, name="a/b=1")
    for name in ("a/b=1", "../a", "", "/a"):
        with pytest.raises(ValueError, match="taken or is no folder name"):
            engine.fit(Supervised(conv_net()), Digits(range(640)), sgd, cosine, name=name)


# ---------------------------------------------------------------------------- settings


def test_engine_settings_are_checked_together():
    with pytest.raises(ConfigError) as error:
        EngineConfig(epochs="3", precision="half", accumulate=0, channels_last=1, log_every=2.5)
    assert len(error.value.problems) == 5
    for words in ("engine.epochs='3': float is needed", "engine.precision=half: one of auto, fp32", "at least 1"):
        assert words in str(error.value)
    with pytest.raises(ConfigError, match=r"engine.epoch is unknown; did you mean engine.epochs\?"):
        EngineConfig.of({"epoch": 3})
    assert EngineConfig.of({"epochs": 3, "clip_norm": 1}).clip_norm == 1


@pytest.mark.parametrize("name", ["default", "debug", "exact"])
def test_config_files_fit_the_dataclass(name):
    from omegaconf import OmegaConf

    folder = os.path.join(os.path.dirname(__file__), "..", "..", "config", "engine")
    settings = OmegaConf.load(os.path.join(folder, "default.yaml"))
    option = OmegaConf.load(os.path.join(folder, f"{name}.yaml"))
    option.pop("defaults", None)
    cfg = EngineConfig.of(OmegaConf.merge(settings, option))
    assert set(settings) == set(EngineConfig.__dataclass_fields__)
    assert cfg.deterministic == (name == "exact") and cfg.max_steps == (2 if name == "debug" else None)


def test_deterministic_mode_is_on_during_the_fit_only(tmp_path):
    seen = []
    fit(
        tmp_path,
        deterministic=True,
        max_steps=1,
        evaluate=lambda net: (
            seen.append((torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark)) or {}
        ),
    )
    assert seen == [(True, False)] and not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_trains(tmp_path, precision):
    losses = [record["train/loss"] for record in fit(tmp_path, precision=precision, epochs=3, clip_norm=5.0).history]
    assert losses[-1] < 0.7 * losses[0]
    state = checkpoint.load_latest(tmp_path / "fits" / "fit")
    assert ("scaler" in state) == (precision == "fp16")
    assert all(value.dtype == torch.float32 for name, value in state["method"].items() if name.endswith("weight"))


@pytest.mark.slow
def test_compiled_net_has_the_same_keys_and_nearly_the_same_weights(tmp_path):
    plain = partial(conv_net, dropout=0.0)
    compiled = fit(tmp_path / "a", method=Supervised(plain()), compile=True, max_steps=5).net
    eager = fit(tmp_path / "b", method=Supervised(plain()), max_steps=5).net
    assert compiled.state_dict().keys() == eager.state_dict().keys()
    for one, two in zip(compiled.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4)


# ---------------------------------------------------------------------------- divergence


class Breaks(Supervised):
    """Its loss or gradient stops being finite where a certain sample is in the batch."""

    def __init__(self, sample, what="loss"):
        super().__init__(conv_net())
        self.sample, self.what = sample, what

    def forward(self, batch):
        step = super().forward(batch)
        hit = (batch.index == self.sample).any()
        if self.what == "loss":
            return step._replace(loss=step.loss + torch.where(hit, float("inf"), 0.0))
        # sqrt has an infinite slope at 0: the loss is fine, the gradient is not
        zero = (self.net[1].weight.sum() * 0).abs()
        return step._replace(loss=step.loss + torch.where(hit, zero, zero + 1).sqrt())


@pytest.mark.parametrize("what", ["loss", "gradient"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_value_that_is_not_finite_stops_and_names_its_batch(tmp_path, what, accumulate):
    train = Digits(range(640))
    batches = [batch.index.tolist() for batch in map(lambda b: b._replace(index=b.index.clone()), train.epoch(1))]
    sample = batches[4][0]
    # the first epoch has the sample too, so the loss breaks only once training has begun in earnest
    method = Breaks(sample, what)
    method.on_epoch = lambda epoch: setattr(method, "sample", sample if epoch == 1 else -1)
    with pytest.raises(Diverged) as error:
        fit(tmp_path, method=method, train=train, epochs=3, log_every=4, save_every_steps=1, accumulate=accumulate)
    assert error.value.exit_code == 4
    facts = json.loads((tmp_path / "fits" / "fit" / "diverged.json").read_text())
    step = 14 if accumulate == 1 else 7
    assert (facts["what"], facts["step"], facts["epoch"]) == (what, step, 1)
    group = batches[4] + batches[5] * (accumulate == 2 and what == "gradient")
    assert facts["samples"] == group and facts["checkpoint"].endswith("last.pt")
    fine = f"everything before step {facts['last_log_point']} was fine"
    where = f"the {what} of step {step} (epoch 1)"
    for words in (where, fine, facts["checkpoint"], "optimizer.lr", "engine.clip_norm=1"):
        assert words in str(error.value)
    state = checkpoint.load_latest(tmp_path / "fits" / "fit")
    assert state["step"] <= step + 1 and all(v.isfinite().all() for v in state["method"].values())
    assert train.opened == train.closed


def test_a_first_step_that_is_not_finite_has_nothing_fine_before_it(tmp_path):
    train = Digits(range(640))
    with pytest.raises(Diverged) as error:
        fit(tmp_path, method=Breaks(next(train.epoch(0)).index[0].item(), "loss"), train=train, log_every=4)
    assert "of step 0 (epoch 0)" in str(error.value) and "was fine" not in str(error.value)


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    class Poisoned(Supervised):
        def after_update(self, step):
            if step == 5:
                with torch.no_grad():
                    self.net[1].weight[0, 0, 0, 0] = float("inf")

    with pytest.raises(Diverged, match="the weights of step 5"):
        fit(tmp_path, method=Poisoned(conv_net()), save_every_steps=1, log_every=50)
    assert checkpoint.load_latest(tmp_path / "fits" / "fit")["step"] == 5


# ---------------------------------------------------------------------------- waiting, leaking, showing


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
    monkeypatch.setattr("src.core.interval.Interval.read", watch(ran))
    fit(tmp_path, method=Guarded(conv_net()), epochs=2, log_every=log_every, ema=0.99, clip_norm=1.0)
    assert count == 20 and len(ran) == 4 and not guarded


def watch(ran):
    from src.core.interval import Interval

    original = Interval.read

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
        fit(tmp_path, run=run, method=method, train=train, epochs=3, log_every=10, ema=0.99, precision=precision)
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
    with caplog.at_level(logging.INFO, logger="src.core.progress"):
        engine.fit(Supervised(conv_net()), Digits(range(640)), sgd, cosine, evaluate=evaluator(engine))
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2
    for word in ("fit: epoch 1", "train/loss", "val/top1", "images/s"):
        assert word in lines[0]


def test_a_bar_where_there_is_one(tmp_path, monkeypatch):
    screen = io.StringIO()
    screen.isatty = lambda: True
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setattr("src.core.progress.Display.refresh_seconds", 0.0)
    threads = threading.active_count()
    fit(tmp_path, epochs=2, log_every=3)
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
    fit(tmp_path, run=run, epochs=2, log_every=4, name="probe", evaluate=lambda net: {"top1": 50.0})
    train = [(step, values) for step, values in logged if "probe/train/loss" in values]
    assert [step for step, _ in train] == [4, 8, 10, 12, 16, 20]
    assert {"probe/epoch", "probe/lr", "probe/images_per_second", "probe/train/top1"} <= train[0][1].keys()
    assert [(step, v["probe/val/top1"]) for step, v in logged if "probe/val/top1" in v] == [(10, 50.0), (20, 50.0)]
    assert all(isinstance(value, (int, float)) for _, values in logged for value in values.values())


def test_fits_do_not_depend_on_what_drew_random_numbers_before(tmp_path):
    one = fit(tmp_path / "a", max_steps=3).net
    torch.manual_seed(99)
    method = Supervised(conv_net())
    torch.rand(7)
    assert same(one, fit(tmp_path / "b", method=method, max_steps=3).net)
    other = fit(tmp_path / "c", run=SmallRun(tmp_path / "c", seed=1), max_steps=3).net
    assert not same(one, other)  # other dropout masks


def test_modules_have_no_stale_gradients_afterwards(tmp_path):
    net: nn.Module = fit(tmp_path, max_steps=2).net
    assert not net.training and all(value.grad is None for value in net.parameters())
