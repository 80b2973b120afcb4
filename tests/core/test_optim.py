"""Schedules against torch's own and hand values; the weight average against torch.optim.swa_utils."""

import warnings
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn
from torch.optim import lr_scheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from recombine.core.errors import ConfigError
from recombine.engine.optim import ModelEma, constant, cosine, linear, step

CONFIG = Path(__file__).parents[2] / "config"


def rates(make, steps, lr=0.4):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)
    schedule = make(optimizer)
    values = []
    for _ in range(steps):
        values.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return values


@pytest.mark.parametrize(
    ("ours", "torchs"),
    [
        (lambda o: cosine(o, 50), lambda o: lr_scheduler.CosineAnnealingLR(o, 50)),
        (lambda o: cosine(o, 50, min_lr_ratio=0.1), lambda o: lr_scheduler.CosineAnnealingLR(o, 50, eta_min=0.04)),
        (lambda o: linear(o, 50), lambda o: lr_scheduler.LinearLR(o, 1.0, 0.0, 50)),
        (lambda o: linear(o, 50, min_lr_ratio=0.2), lambda o: lr_scheduler.LinearLR(o, 1.0, 0.2, 50)),
        (lambda o: step(o, 50, milestones=[0.2, 0.4, 0.6, 0.8]), lambda o: lr_scheduler.StepLR(o, 10, 0.1)),
        (lambda o: step(o, 50, milestones=[5, 30], gamma=0.3), lambda o: lr_scheduler.MultiStepLR(o, [5, 30], 0.3)),
        (lambda o: constant(o, 50), lambda o: lr_scheduler.ConstantLR(o, 1.0)),
        (lambda o: constant(o, 50, warmup=9), lambda o: lr_scheduler.LinearLR(o, 0.1, 1.0, 9)),
        (
            lambda o: cosine(o, 50, warmup=0.2),
            lambda o: lr_scheduler.SequentialLR(
                o, [lr_scheduler.LinearLR(o, 1 / 11, 1.0, 10), lr_scheduler.CosineAnnealingLR(o, 40)], [10]
            ),
        ),
    ],
)
def test_schedules_are_torch_s(ours, torchs):
    with warnings.catch_warnings():  # SequentialLR calls a form of step() that torch itself deprecates
        warnings.filterwarnings("ignore", category=UserWarning, module="torch")
        assert rates(ours, 50) == pytest.approx(rates(torchs, 50), abs=1e-9)


def test_hand_values():
    assert rates(lambda o: cosine(o, 4), 4, lr=1.0) == pytest.approx([1, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5])
    assert rates(lambda o: linear(o, 4), 4, lr=1.0) == pytest.approx([1, 0.75, 0.5, 0.25])
    assert rates(lambda o: step(o, 4, milestones=[0.5], warmup=1), 4, lr=1.0) == pytest.approx([0.5, 1, 0.1, 0.1])
    assert rates(lambda o: linear(o, 4, warmup=2), 4, lr=1.0) == pytest.approx([1 / 3, 2 / 3, 1, 0.5])


@pytest.mark.parametrize("make", [constant, cosine, linear])
def test_warm_up_longer_than_the_training_is_refused(make):
    with pytest.raises(ConfigError, match=r"schedule.warmup=60 is longer than the training of 50 steps"):
        rates(lambda o: make(o, 50, warmup=60), 1)


@pytest.mark.parametrize("value", [-0.1, 1.5])
def test_neither_share_nor_step_number_is_refused(value):
    with pytest.raises(ConfigError, match=f"schedule.warmup={value}"):
        rates(lambda o: cosine(o, 50, warmup=value), 1)


@pytest.mark.parametrize("name", ["constant", "cosine", "linear", "step"])
def test_schedule_options_construct(name):
    node = OmegaConf.to_container(OmegaConf.load(CONFIG / "schedule" / f"{name}.yaml"))
    assert node.pop("_target_") == f"recombine.engine.optim.{name}" and node.pop("_partial_")
    function = {"constant": constant, "cosine": cosine, "linear": linear, "step": step}[name]
    assert rates(lambda o: function(o, 10, **node), 10)[0] == 0.4


@pytest.mark.parametrize(("name", "kind"), [("sgd", "SGD"), ("adam", "Adam"), ("adamw", "AdamW")])
def test_optimizer_options_construct(name, kind):
    node = OmegaConf.to_container(OmegaConf.load(CONFIG / "optimizer" / f"{name}.yaml"))
    assert node.pop("_target_") == f"torch.optim.{kind}" and node.pop("_partial_")
    getattr(torch.optim, kind)([nn.Parameter(torch.zeros(1))], **node)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))


def train(module, follow, steps=10):
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for _ in range(steps):
        module(torch.randn(16, 4)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        follow()


def test_average_is_torch_s():
    live = net()
    reference = AveragedModel(live, multi_avg_fn=get_ema_multi_avg_fn(0.8), use_buffers=True)
    reference.update_parameters(live)  # its first update only copies
    ours = ModelEma(live, 0.8)
    train(live, lambda: (ours.update(), reference.update_parameters(live)))
    kept = {name: value.clone() for name, value in live.state_dict().items()}
    with ours.swapped():
        for name, value in live.state_dict().items():
            expected = reference.module.state_dict()[name] if value.is_floating_point() else kept[name]
            torch.testing.assert_close(value, expected)
            assert value.dtype == kept[name].dtype
    assert all(torch.equal(value, kept[name]) for name, value in live.state_dict().items())


def test_average_is_put_back_after_an_error_and_published_for_good():
    live = net()
    ours = ModelEma(live, 0.5)
    start = live[0].weight.detach().clone()
    train(live, lambda: None, steps=1)
    trained = live[0].weight.detach().clone()
    with pytest.raises(ZeroDivisionError), ours.swapped():
        assert torch.equal(live[0].weight, start)
        raise ZeroDivisionError
    assert torch.equal(live[0].weight, trained)
    ours.publish()
    assert torch.equal(live[0].weight, start) and live[0].weight.requires_grad


def test_average_saves_itself_alone_and_leaves_frozen_weights_out():
    live = net()
    live[0].requires_grad_(False)
    ours = ModelEma(live, 0.5)
    assert [tuple(value.shape) for value in ours.state_dict().values()] == [(8,)] * 4 + [(2, 8), (2,)]
    train(live, ours.update, steps=3)
    other = ModelEma(live, 0.5)
    other.load_state_dict(ours.state_dict())
    for average in (ours, other):
        average.update()
    assert all(map(torch.equal, ours.buffers(), other.buffers()))


def test_average_follows_a_module_that_was_moved():
    live = net().double()
    ours = ModelEma(live, 0.5)
    live.float(), ours.float()
    train(live, ours.update, steps=1)
    ours.publish()
    assert live[1].running_mean.dtype == torch.float32


@pytest.mark.parametrize("decay", [1.0, -0.1, 2])
def test_a_decay_outside_its_range_is_refused(decay):
    with pytest.raises(ConfigError, match=r"engine.ema_decay="):
        ModelEma(net(), decay)
