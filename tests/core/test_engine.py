"""The training loop against hand-written ones, its switches and what it freezes."""

import os
import zlib
from functools import partial

import pytest
import torch
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from recombine.core.counter_rng import key, permutation
from recombine.core.errors import ConfigError
from recombine.core.types import Step
from recombine.engine import checkpoint
from recombine.engine.engine import Engine
from recombine.engine.method import Method, Supervised
from recombine.engine.metrics import Accuracy
from recombine.engine.optim import constant, cosine
from recombine.engine.settings import EngineSettings
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


@pytest.mark.parametrize("batchnorm", ["adapt", "keep"])
def test_statistics_of_batchnorm_stay_if_asked_for(tmp_path, batchnorm):
    net = conv_net()
    before = {name: value.clone() for name, value in net.named_buffers()}
    weights = [value.detach().clone() for value in net.parameters()]
    trained = fit(tmp_path, method=Supervised(net, batchnorm=batchnorm), max_steps=3).net
    assert len(before) == 3
    assert all(torch.equal(value, before[name]) == (batchnorm == "keep") for name, value in trained.named_buffers())
    assert not any(torch.equal(one, two) for one, two in zip(weights, trained.parameters(), strict=True))


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
    ours = fit(tmp_path, method=Supervised(plain()), train=train, epochs=2, grad_accum_steps=4).net
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
    assert ["val/accuracy" in record for record in result.history] == [False, True, True]
    assert result.metrics == {"accuracy": result.history[-1]["val/accuracy"]}
    assert result.metrics["accuracy"] > 60 and result.seconds > 0 and result.images_per_second > 0
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
    return {"accuracy": pytest.approx(100 * (logits.argmax(1) == data.labels[1400:]).double().mean().item())}


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
    fit(tmp_path, method=method, optimizer=plain, schedule=constant, grad_clip_norm=0.05, max_steps=8)
    assert max(norms) == pytest.approx(0.05, rel=1e-3)


def test_ema_is_torch_s_and_is_what_gets_evaluated_and_published(tmp_path):
    averages = None

    def update(net):
        averages.update_parameters(net)

    net = conv_net().to(memory_format=torch.channels_last)
    averages = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    averages.update_parameters(net)  # torch's first update copies: let it be the initial weights, as in ours
    raw = by_hand(20, net=net, each=update)

    engine = Engine({"epochs": 2, "ema_decay": 0.9}, SmallRun(tmp_path))
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
    with pytest.raises(ConfigError, match="best=top5 is not measured; the evaluation gives accuracy"):
        fit(tmp_path, evaluate=lambda net: {"accuracy": 1.0}, best="top5", max_steps=1)


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
        wrong = {"epochs": "3", "precision": "half", "grad_accum_steps": 0, "channels_last": 1, "log_every": 2.5}
        EngineSettings.of(wrong | {"epoch": 3}, "engine")
    assert len(error.value.problems) == 6
    for words in (
        "engine.epochs=3: a number",
        "engine.precision=half: one of auto, fp32",
        "at least 1",
        "did you mean 'epochs'?",
    ):
        assert words in str(error.value)
    assert EngineSettings.of({"epochs": 3, "grad_clip_norm": 1}).grad_clip_norm == 1


@pytest.mark.parametrize("name", ["default", "debug", "deterministic"])
def test_config_files_fit_the_settings(name):
    from omegaconf import OmegaConf

    folder = os.path.join(os.path.dirname(__file__), "..", "..", "config", "engine")
    settings = OmegaConf.load(os.path.join(folder, "default.yaml"))
    option = OmegaConf.load(os.path.join(folder, f"{name}.yaml"))
    option.pop("defaults", None)
    cfg = EngineSettings.of(OmegaConf.to_container(OmegaConf.merge(settings, option)))
    assert set(settings) == set(EngineSettings.model_fields)
    assert cfg.deterministic == (name == "deterministic") and cfg.max_steps == (2 if name == "debug" else None)


def test_what_trains_and_is_not_in_the_loss_is_named(tmp_path):
    method = Supervised(conv_net())
    method.idle = torch.nn.Linear(2, 2)
    with pytest.raises(
        ConfigError, match=r"fit fit: 2 parameters train that the loss of Supervised does not reach \(idle"
    ):
        fit(tmp_path, method=method)
    method.idle.requires_grad_(False)
    assert fit(tmp_path / "frozen", method=method, max_steps=1).steps == 1


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
    losses = [
        record["train/loss"] for record in fit(tmp_path, precision=precision, epochs=3, grad_clip_norm=5.0).history
    ]
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
