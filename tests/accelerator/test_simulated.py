"""Every entry and method on a simulated accelerator: no device error, and no wait inside a training step."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim.optimizer import register_optimizer_step_pre_hook

from recombine import models
from recombine.cli.entries import ENTRIES
from recombine.core.files import CONFIG_DIR
from recombine.core.results import read_rows
from recombine.run.launch import launch
from scripts.campaigns.runs import RUNS, make_networks
from scripts.simulated import SIM, simulated
from tests.composing import composed

SMALL = ["loader=torch", "loader.workers=0", "logger=none", "engine.max_steps=3", "engine.epochs=2"]
SMALL += ["engine.log_every=1000"]
QUICK = {"localize_epochs": 1, "insert_epochs": 1, "epochs": 1, "min_steps": 4, "positions": "[1]", "repetitions": 1}
"""Settings of cloning methods that make them short, where they have them."""
SINGLE = {("multi_teacher", name) for name in ("bi_kd", "ensemble", "self_dist", "xe")}
"""Refused: they have one teacher or none."""
RULES = {
    "mixed devices": lambda x: x + torch.ones(3),
    "a mask of the CPU": lambda x: x.where(torch.ones(3, dtype=torch.bool), x),
    "indexing by the device": lambda x: torch.ones(3)[torch.tensor([0]).to(SIM)],
    "numpy": lambda x: x.numpy(),
    "a generator of the CPU": lambda x: torch.randn(3, device=SIM, generator=torch.Generator()),
}
WAITS = {
    "a number is read": lambda x: float(x.sum()),
    "index by a list": lambda x: x[[0, 1]],
    "index by a mask": lambda x: x[x > 0],
    "index of the CPU": lambda x: x[torch.tensor([0])],
    "nonzero": lambda x: x.nonzero(),
    "copy to the CPU": lambda x: x.cpu(),
    "copy to the device": lambda x: torch.ones(3).to(SIM),
}


@pytest.mark.parametrize("rule", RULES)
def test_what_a_gpu_refuses_raises(rule):
    with simulated(), pytest.raises((RuntimeError, TypeError)):
        RULES[rule](torch.ones(3, device=SIM))


@pytest.mark.parametrize("what", WAITS)
def test_waits_are_seen_with_their_place(what):
    with simulated() as waits:
        x = torch.ones(3, device=SIM)
        waits.inside = True
        x * 2 + x.sum() - x[0]
        assert not waits.counts
        WAITS[what](x)
    assert what in {seen for _, seen in waits.counts}


def test_gradients_are_those_of_the_cpu():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))
    images, labels = torch.randn(2, 3, 8, 8), torch.tensor([1, 2])
    cross_entropy(net(images), labels).backward()
    expected = [value.grad.clone() for value in net.parameters()]
    net.zero_grad()
    with simulated():
        net.to(SIM)
        cross_entropy(net(images.to(SIM)), labels.to(SIM)).backward()
        found = [value.grad.cpu() for value in net.parameters()]
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def methods(entry: str) -> list[str]:
    folder = CONFIG_DIR / ENTRIES[entry].groups / "method"
    return sorted(file.relative_to(folder).with_suffix("").as_posix() for file in folder.rglob("*.yaml"))


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("accelerator")
    make_networks(folder)
    node = {"name": "resnet8", "size": 16, "weights": None}
    models.save(models.build(node, classes=10), folder / "weights" / "residual.safetensors", {})
    names = {"class_names": [f"digit {k}" for k in range(5)], "dataset": "digits_low"}
    models.save(models.build(node, classes=5, seed=1), folder / "zoo" / "low.safetensors", names)
    return folder


def run(place: Path, entry: str, method: str | None, *more: str) -> list:
    """Rows of a small run on the accelerator; no training step waited, or left a parameter without a gradient."""
    roots = {"data": place, "weights": place / "weights", "cache": place / "cache", "output": place / f"out-{method}"}
    words = [word for word in RUNS[entry] if not word.startswith("method")] + [*SMALL, *more]
    words += [f"method={method}"] if method else []
    words += ["model.name=residual"] if entry == "patch" else []
    words += ["method.modules=3"] if method == "delta_4" else []  # a module a stage, and this network has three
    cfg = composed(entry, *words, *(f"{name}_root={path}" for name, path in roots.items()))
    if entry == "pnc":
        words += [f"method.{name}={value}" for name, value in QUICK.items() if name in cfg.method]
        cfg = composed(entry, *words, *(f"{name}_root={path}" for name, path in roots.items()))
    idle = set()

    def look(optimizer, *_):
        trained = [value for group in optimizer.param_groups for value in group["params"] if value.requires_grad]
        idle.update(tuple(value.shape) for value in trained if value.grad is None)

    hook = register_optimizer_step_pre_hook(look)
    try:
        with simulated() as waits:
            launch(ENTRIES[entry].recipe, cfg)
    finally:
        hook.remove()
    assert not waits.counts, waits.report()
    assert not idle, f"trained without a gradient: parameters of the shapes {idle}"
    return read_rows(roots["output"])


@pytest.mark.parametrize("entry", ["pretrain", "flips", "transfer", "multi_teacher", "patch", "stitch", "pnc"])
def test_every_entry_runs_on_an_accelerator(place, entry):
    kinds = {"transfer": "kl_dp", "multi_teacher": "kl_dp", "patch": "delta", "pnc": "pnc"}
    rows = run(place, entry, kinds.get(entry), "engine.ema_decay=0.9" if entry == "pretrain" else "seed=1")
    assert rows and all(row.status == "ok" for row in rows) and rows[0].provenance["device"].startswith("sim")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("entry", "method"),
    [
        (entry, method)
        for entry in ("transfer", "multi_teacher", "patch", "pnc")
        for method in methods(entry)
        if (entry, method) not in SINGLE and method not in ("from_file", "compose")
    ],
)
def test_every_method_runs_on_an_accelerator(place, entry, method):
    assert all(row.status == "ok" for row in run(place, entry, method))
