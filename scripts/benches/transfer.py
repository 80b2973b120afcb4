"""Data partitioning by tensors against by sample, and cached logits of frozen networks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy

import torch
from torch import Tensor
from torch.nn import functional as F

from benches.timing import clock, compare, now, the_device
from recombine import models as zoo
from recombine.core.types import Batch, Row
from recombine.models import Model
from recombine.transfer.data_partition import DataPartition
from recombine.transfer.teacher_cache import FrozenTeachers, Mirroring

__all__ = ["measure"]

BATCH = 256


def measure() -> Iterator[Row]:
    """A step of KL+DP against the same arithmetic sample by sample, and with cached against live frozen logits."""
    device = the_device()
    unit = f"{clock(device)} per step"
    for classes in (10, 1000):
        student, initial, teacher, batch = _networks(device, classes)
        method = DataPartition(student, FrozenTeachers([teacher]), FrozenTeachers([initial]), name="kl_dp").train()
        by_sample = _BySample(deepcopy(student), initial, teacher)
        ours, baseline = _timed(method, batch, device), _timed(by_sample, batch, device)
        yield compare(f"KL+DP step, {classes} classes", ours, baseline, unit)
    student, initial, teacher, batch = _networks(device, 10)
    live = DataPartition(student, FrozenTeachers([teacher]), FrozenTeachers([initial]), name="kl_dp").train()
    method = DataPartition(deepcopy(student), _cached(teacher, batch), _cached(initial, batch), name="").train()
    ours, baseline = _timed(method, batch, device), _timed(live, batch, device)
    yield compare("remembered frozen logits, equal nets", ours, baseline, unit)


def _networks(device: torch.device, classes: int) -> tuple[Model, Model, Model, Batch]:
    """Student, its copy and a teacher of the same size at 32 px, and a batch of noise."""
    nets = [zoo.build({"name": "cnn", "widths": [16, 16, 32, 32]}, classes=classes, seed=seed) for seed in (0, 0, 1)]
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (BATCH, 3, 32, 32), dtype=torch.uint8, generator=generator)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(classes, (BATCH,), generator=generator)
    batch = Batch(*(value.to(device) for value in (images, labels, torch.arange(BATCH))))
    return *(net.to(device, memory_format=torch.channels_last) for net in nets), batch


def _cached(model: Model, batch: Batch) -> FrozenTeachers:
    frozen = FrozenTeachers([model])
    with torch.no_grad():
        frozen.tables = [model(batch.images)[None]]
    frozen.rows, frozen.mirroring = batch.index, Mirroring(1, lambda index, epoch: torch.zeros_like(index))
    return frozen


def _timed(method: torch.nn.Module, batch: Batch, device: torch.device) -> Callable[[], float]:
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=1e-5, momentum=0.9)

    def seconds(steps: int = 4) -> float:
        start = now(device)
        for _ in range(steps):
            method(batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return (now(device) - start) / steps

    return seconds


class _Result:
    def __init__(self, loss: Tensor) -> None:
        self.loss = loss


class _BySample(torch.nn.Module):
    """The loss of KL+DP as it reads in prose: each sample is looked at, decided and copied on its own."""

    def __init__(self, student: Model, initial: Model, teacher: Model) -> None:
        super().__init__()
        self.student, self.initial, self.teacher = student.train(), initial, teacher

    def forward(self, batch: Batch) -> _Result:
        logits = self.student(batch.images)
        with torch.no_grad():
            initial, teacher = self.initial(batch.images), self.teacher(batch.images)
        target, inputs = torch.empty_like(logits), torch.empty_like(logits)
        for i, label in enumerate(batch.labels):
            confident = F.softmax(teacher[i], 0)[label] > F.softmax(initial[i], 0)[label]
            source = teacher[i] if confident else initial[i]
            order = source.topk(len(source)).indices  # the k largest logits, here all
            target[i] = source.index_select(0, order)
            inputs[i] = logits[i].index_select(0, order)
        loss = F.kl_div(F.log_softmax(inputs, 1), F.softmax(target, 1), reduction="batchmean")
        right = [int(p == y) for p, y in zip(logits.argmax(1).tolist(), batch.labels.tolist(), strict=True)]
        self.accuracy = sum(right) / len(right)
        return _Result(loss)
