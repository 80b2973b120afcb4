"""A real network on a GPU: the engine against a bare loop in each precision, loaders against data that lie there.

On a CPU the network is a small one, so that the section can be tried.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from benches.engine import Resident
from benches.timing import clock, compare, now, the_device
from recombine import data as datasets
from recombine import models
from recombine.core.types import Row
from recombine.engine.engine import Engine
from recombine.engine.method import Supervised
from recombine.engine.optim import cosine
from recombine.run.run import Run
from recombine.run.signals import StopSignals
from recombine.run.tracking import Tracker

__all__ = ["measure"]

STEPS = 32


def measure() -> Iterator[Row]:
    """ResNet-50 at 224 pixels on CUDA, ResNet-8 at 32 on a CPU."""
    device = the_device()
    large = device.type == "cuda"
    node = {"name": "timm:resnet50" if large else "resnet8", "weights": None} | ({} if large else {"size": 32})
    batch, size = (128, 224) if large else (16, 32)
    resident = Resident(batch, device, STEPS, size)
    unit = f"{clock(device)} per step"
    for precision, compiled in (("fp32", False), ("bf16", False), ("bf16", True)):
        if precision == "bf16" and not (large and torch.cuda.is_bf16_supported(including_emulation=False)):
            continue
        case = f"{node['name']}, batch {batch}, {precision}{', compile' * compiled}"
        settings = {"precision": precision, "compile": compiled}
        with tempfile.TemporaryDirectory() as folder:
            ours = partial(_engine_seconds, resident, node, settings, Path(folder))
            yield compare(case, ours, partial(_loop_seconds, resident, node, precision, compiled), unit, rounds=3)
    yield from _loaders(node, batch, size, device)


def _loaders(node: dict[str, Any], batch: int, size: int, device: torch.device) -> Iterator[Row]:
    """Training steps on images that a loader brings, against the same steps on a batch that lies on the device."""
    precision = "bf16" if device.type == "cuda" else "fp32"
    resident, unit = Resident(batch, device, STEPS, size), f"{clock(device)} per step"
    for kind in ("device", "torch", *(["ffcv"] if find_spec("ffcv") else [])):
        with tempfile.TemporaryDirectory() as folder:
            where = {"data_root": folder, "cache_root": f"{folder}/cache", "seed": 0, "device": device}
            fake = {"name": "fake", "source": "fake", "image_size": size, "samples": batch * STEPS, "classes": 10}
            workers = 4 if device.type == "cuda" else 0
            data = datasets.open_data(fake, loader={"kind": kind, "workers": workers}, **where)
            loader = data.loader("train", batch, train=True, size=size)
            ours = partial(_loader_seconds, loader, node, precision, device)
            yield compare(
                f"loader={kind}, {size} px", ours, partial(_loop_seconds, resident, node, precision, False), unit, 3
            )
            data.close()


def _sgd(groups: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=0.01, momentum=0.9, fused=True)


def _network(node: dict[str, Any], device: torch.device) -> torch.nn.Module:
    return models.build(node, classes=10).to(device).to(memory_format=torch.channels_last).train()


def _engine_seconds(data: Resident, node: dict[str, Any], settings: dict[str, Any], folder: Path) -> float:
    run = Run(folder, "bench", "bench", "bench", 0, data.device, Tracker.silent(), StopSignals(), folder)
    method = Supervised(_network(node, data.device))
    Engine({**settings, "resume": "never"}, run).fit(method, data, _sgd, cosine)
    return data.seconds


def _loop_seconds(data: Resident, node: dict[str, Any], precision: str, compiled: bool) -> float:
    _loop(data.epoch(0), _network(node, data.device), precision, data.device, compiled)
    return data.seconds


def _loader_seconds(loader: Any, node: dict[str, Any], precision: str, device: torch.device) -> float:
    """Seconds of a step, from the second batch on: workers and threads have started then."""
    batches = loader.epoch(0)
    net = _network(node, device)
    _loop(islice(batches, 1), net, precision, device)
    started = now(device)
    _loop(batches, net, precision, device)
    return (now(device) - started) / (STEPS - 1)


def _loop(batches: Any, net: torch.nn.Module, precision: str, device: torch.device, compiled: bool = False) -> None:
    """What a person writes by hand: mixed precision, SGD, no metrics."""
    forward = torch.compile(net) if compiled else net
    optimizer = _sgd(net.parameters())
    for batch in batches:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            loss = F.cross_entropy(forward(batch.images), batch.labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
