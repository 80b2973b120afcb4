"""The smallest real recipe: a line fitted by gradient descent, with every kind of trouble on request."""

import os
import signal
import time
from contextlib import nullcontext

import torch

from recombine.core.errors import ConfigError, Diverged, Interrupted
from recombine.core.types import Row
from recombine.run.config import build
from recombine.run.signals import finishing
from tests.core.fit.settings import FitSettings

OBJECTIVE = "loss"
SETTINGS = FitSettings


def cell(cfg):
    return {"noise": cfg.noise}


def published(row):
    return {"slope": 3.0} if row.cell["noise"] == 0 else {}


def run(cfg, run):
    if cfg.noise == 18:
        raise ConfigError("noise=18: too much to begin with; noise=1")
    x = torch.linspace(-1, 1, 50)
    y = 3 * x + cfg.noise * torch.randn(50)
    slope = torch.zeros(1, requires_grad=True)
    optimizer = build(cfg.optimizer)([slope])
    for step in range(cfg.steps):
        if cfg.pause:
            (run.dir / "started").touch()
            with finishing() if cfg.hold else nullcontext():
                time.sleep(cfg.pause)
        if run.stop_requested():
            raise Interrupted(run.stop_requested())
        optimizer.zero_grad()
        loss = ((slope * x - y) ** 2).mean()
        loss.backward()
        optimizer.step()
        validated = {"val/loss": loss} if step else {}  # the first one is the same for all
        run.tracker.log({"train/loss": loss, "train/rate": cfg.optimizer.lr, **validated}, step)
        if not torch.isfinite(loss):
            raise Diverged(f"the loss is {loss.item()} at step {step}")
    torch.save({"slope": slope.detach()}, run.dir / "last.pt")
    if cfg.noise == 13:
        raise RuntimeError("thirteen")
    if cfg.noise == 17:
        os.kill(os.getpid(), signal.SIGKILL)
    if cfg.noise == 15:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    if cfg.noise == 14:
        raise ConfigError("noise=14: no line is seen in that; noise=1")
    run.stats["images_per_second"] = 1000.0
    if cfg.noise == 16:
        yield Row({"noise": 0}, {"loss": -1.0})
    yield Row(cell(cfg), {"loss": loss.item(), "slope": slope.item()})
