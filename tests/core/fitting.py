"""What the engine's tests train: scikit-learn's digits, small nets, and a run without Hydra."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

from recombine.core.counter_rng import permutation
from recombine.core.types import Batch
from recombine.engine.engine import Engine
from recombine.engine.method import Supervised
from recombine.engine.optim import cosine
from recombine.run.tracking import Tracker

CPU = torch.device("cpu")
torch.set_num_threads(1)  # nets this small only wait for a second thread, and rounding depends on the number


@cache
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """All 1797 images as uint8 [N, 3, 8, 8], and their labels."""
    images, labels = load_digits(return_X_y=True)
    grey = torch.from_numpy((images * 15.9).astype(np.uint8)).view(-1, 1, 8, 8)
    return grey.repeat(1, 3, 1, 1).contiguous(memory_format=torch.channels_last), torch.from_numpy(labels)


class Digits:
    """A Loader over `indices` of the digits; batches live in one buffer that is overwritten, as FFCV's do."""

    def __init__(self, indices, batch_size=64, train=True, seed=0, rank=0, world=1, device=CPU):
        self.indices = np.asarray(indices)
        self.batch_size, self.train, self.seed, self.rank, self.world = batch_size, train, seed, rank, world
        self.samples = len(self.indices)
        self.images, self.labels = (value.to(device) for value in digits())
        self.digest = f"digits-{self.samples}-{int(self.indices.sum())}"
        self.opened = self.closed = 0
        self.asked: list[tuple[int, int]] = []

    def __len__(self):
        return self.samples // self.batch_size if self.train else -(-self.samples // self.batch_size)

    def epoch(self, epoch, start=0) -> Iterator[Batch]:
        self.opened += 1
        self.asked.append((epoch, start))
        order = self.indices[permutation(self.seed, epoch, self.samples)] if self.train else self.indices
        share = self.batch_size // self.world
        buffer = torch.empty_like(self.images[: self.batch_size])
        try:
            for step in range(start, len(self)):
                first = step * self.batch_size + self.rank * share
                own = torch.from_numpy(order[first : first + share]).to(self.images.device)
                buffer[: len(own)] = self.images[own]
                if len(own):
                    yield Batch(buffer[: len(own)], self.labels[own], own)
                buffer.fill_(77)  # whoever keeps a batch keeps nothing
        finally:
            self.closed += 1

    def close(self):
        pass


@dataclass
class SmallRun:
    """The part of a Run that the engine uses."""

    dir: Path
    device: torch.device = CPU
    seed: int = 0
    rank: int = 0
    world: int = 1
    tracker: Tracker = field(default_factory=Tracker.silent)
    stats: dict = field(default_factory=dict)
    signal: int | None = None

    @property
    def main(self):
        return self.rank == 0

    def stop_requested(self):
        return self.signal


class Scaled(nn.Module):
    """uint8 images to [-1, 1]."""

    def forward(self, images):
        return images.float() / 127.5 - 1


def conv_net(seed=0, dropout=0.2, norm=True) -> nn.Sequential:
    """A small net with everything that carries state: convolution, BatchNorm, dropout."""
    torch.manual_seed(seed)
    return nn.Sequential(
        Scaled(),
        nn.Conv2d(3, 8, 3, padding=1, bias=not norm),
        nn.BatchNorm2d(8) if norm else nn.Identity(),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(256, 10),
    )


sgd = partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=5e-4, fused=True)


def fit(
    folder,
    *,
    method=None,
    train=None,
    optimizer=sgd,
    schedule=cosine,
    run=None,
    name="fit",
    evaluate=None,
    best=None,
    **settings,
):
    """Fit a small net on 640 digits."""
    run = run or SmallRun(Path(folder))
    method = method or Supervised(conv_net())
    train = Digits(range(640)) if train is None else train
    return Engine(settings, run).fit(method, train, optimizer, schedule, name=name, evaluate=evaluate, best=best)


def same(first: nn.Module, second: nn.Module) -> bool:
    """Whether two modules have bit-identical states."""
    one, two = first.state_dict(), second.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
