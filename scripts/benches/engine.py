"""A training step of the engine against a hand-written loop with the same log points."""

from __future__ import annotations

import tempfile
from collections.abc import Generator, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from benches.timing import clock, compare, now, the_device
from recombine.core.types import Batch, Row
from recombine.engine.engine import Engine
from recombine.engine.method import Supervised
from recombine.engine.optim import cosine
from recombine.run.run import Run
from recombine.run.signals import StopSignals
from recombine.run.tracking import Tracker

__all__ = ["Resident", "measure"]


def measure() -> Iterator[Row]:
    """Two nets so small that what the engine adds to a step is seen."""
    device = the_device()
    for name, width, batch in (("small net", 16, 64), ("tiny net", 4, 16)):
        data = Resident(batch, device)
        with tempfile.TemporaryDirectory() as folder:
            ours = partial(_engine_seconds, data, width, Path(folder))
            baseline = partial(_baseline_seconds, data, width)
            yield compare(f"{name}, batch {batch}", ours, baseline, f"{clock(device)} per step", rounds=12)


def _net(width: int, device: torch.device) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)]
    layers += [nn.Conv2d(width, 2 * width, 3, padding=1, bias=False), nn.BatchNorm2d(2 * width), nn.ReLU()]
    layers += [nn.MaxPool2d(2), nn.Conv2d(2 * width, 4 * width, 3, padding=1), nn.ReLU()]
    net = nn.Sequential(_Scaled(), *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, 10))
    return net.to(device).to(memory_format=torch.channels_last)


class _Scaled(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.float() / 127.5 - 1


class Resident:
    """One epoch of batches that lie on the device; it also holds the clock, which runs between two fetches."""

    def __init__(self, batch_size: int, device: torch.device, steps: int = 52, size: int = 32) -> None:
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(256, (batch_size, 3, size, size), dtype=torch.uint8, generator=generator)
        labels = torch.randint(10, (batch_size,), generator=generator)
        images = images.contiguous(memory_format=torch.channels_last)
        self.batch = Batch(*(value.to(device) for value in (images, labels, torch.arange(batch_size))))
        self.batch_size, self.steps, self.samples, self.digest = batch_size, steps, batch_size * steps, "synthetic"
        self.device = device
        self.seconds = 0.0
        """Per step, from the second fetch to the last one, which contains one log point."""

    def __len__(self) -> int:
        return self.steps

    def epoch(self, epoch: int, start: int = 0) -> Generator[Batch]:
        for step in range(start, self.steps):
            if step == 1:
                started = now(self.device)
            if step == self.steps - 1:
                self.seconds = (now(self.device) - started) / (self.steps - 2)
            yield self.batch

    def close(self) -> None:
        pass


def _sgd(groups) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=0.01, momentum=0.9, weight_decay=5e-4, fused=True)


def _engine_seconds(data: Resident, width: int, folder: Path) -> float:
    run = Run(folder, "bench", "bench", "bench", 0, data.device, Tracker.silent(), StopSignals(), folder)
    Engine({"precision": "fp32", "resume": "never"}, run).fit(Supervised(_net(width, data.device)), data, _sgd, cosine)
    return data.seconds


def _baseline_seconds(data: Resident, width: int) -> float:
    net = _net(width, data.device).train()
    optimizer = _sgd(net.parameters())
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, data.steps)
    losses = hits = torch.zeros((), device=data.device)
    for number, batch in enumerate(data.epoch(0), 1):
        logits = net(batch.images)
        loss = F.cross_entropy(logits, batch.labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        losses = losses + loss.detach()
        hits = hits + (logits.detach().argmax(1) == batch.labels).float().mean()
        if number % 50 == 0:
            torch.stack([losses, hits]).tolist()
    return data.seconds
