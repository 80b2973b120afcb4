"""What a patch costs to train and to run."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from benches.timing import clock, compare, now, the_device
from recombine.core.types import Row
from recombine.models.graph import trace
from recombine.patch.delta import Delta
from recombine.patch.patched import TaskNetwork

__all__ = ["measure"]

SIDE, CLASSES = 224, 20


def measure() -> Iterator[Row]:
    """Training one module on cached prefix values against whole forward passes; a patched network against its base."""
    device = the_device()
    # with fewer images PyTorch runs 1x1 convolutions of one CPU thread without oneDNN
    batch = 64 if device.type == "cuda" else 16
    for name in ("resnet18", "resnet50"):
        torch.manual_seed(0)
        net = getattr(torchvision.models, name)().eval().requires_grad_(False).to(device)
        patched = TaskNetwork(net, Delta(trace(net, SIDE), CLASSES, modules=1)).to(device)
        images = torch.randn(batch, 3, SIDE, SIDE, device=device)
        labels = torch.randint(CLASSES, (batch,), device=device)
        cached = patched.eval().prefix(images)
        optimizer = torch.optim.AdamW(patched.patch.parameters(), 1e-3)
        step = partial(_step_seconds, patched, optimizer, labels)
        unit = f"{clock(device)} per {batch} images"
        ours, baseline = partial(step, cached), partial(step, images)
        yield compare(f"{name}, training one module on the kept prefix", ours, baseline, unit, rounds=3)
        ours, baseline = partial(_forward_seconds, patched, images), partial(_forward_seconds, net, images)
        yield compare(f"{name}, patched pass against the base's", ours, baseline, unit, rounds=3)


def _step_seconds(
    patched: TaskNetwork, optimizer: torch.optim.Optimizer, labels: torch.Tensor, inputs: torch.Tensor
) -> float:
    """One step; given images, the whole frozen network is run."""
    patched.patch.train()
    optimizer.zero_grad()
    start = now(inputs.device)
    F.cross_entropy(patched(inputs), labels).backward()
    optimizer.step()
    return now(inputs.device) - start


@torch.no_grad()
def _forward_seconds(net: nn.Module, images: torch.Tensor) -> float:
    net.eval()
    start = now(images.device)
    net(images)
    return now(images.device) - start
