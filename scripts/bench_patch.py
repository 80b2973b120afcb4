"""The `patch` section of bench.py: what a patch costs to train and to run."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from src.models.graph import trace
from src.patch.delta import Delta
from src.patch.patched import Patched

__all__ = ["patch"]

SIDE, CLASSES = 224, 20


def patch(alternate: Callable, rounds: int = 3) -> list[dict[str, object]]:
    """Training one module on kept prefix values against full passes, and a patched pass against the base's."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    batch = 64 if device.type == "cuda" else 8
    rows = []
    for name in ("resnet18", "resnet50"):
        torch.manual_seed(0)
        net = getattr(torchvision.models, name)().eval().requires_grad_(False).to(device)
        patched = Patched(net, Delta(trace(net, SIDE), CLASSES, modules=1)).to(device)
        images = torch.randn(batch, 3, SIDE, SIDE, device=device)
        labels = torch.randint(CLASSES, (batch,), device=device)
        kept = patched.eval().prefix(images)
        clock = "wall" if device.type == "cuda" else "processor"
        step = partial(_step_seconds, patched, labels)
        ours, plain, ratio = alternate(partial(step, kept), partial(step, images), rounds=rounds)
        unit = f"ms of {clock} time per training step of {batch} images; ratio: times faster"
        rows.append(_row(f"{name}, one module, kept prefix", ours, plain, 1 / ratio, unit))
        ours, plain, ratio = alternate(
            partial(_pass_seconds, patched, images), partial(_pass_seconds, net, images), rounds
        )
        unit = f"ms of {clock} time per pass of {batch} images; ratio: patched / base"
        rows.append(_row(f"{name}, one module, forward pass", ours, plain, ratio, unit))
    return rows


def _row(name: str, ours: float, plain: float, ratio: float, unit: str) -> dict[str, object]:
    return {"name": name, "ours": 1e3 * ours, "plain": 1e3 * plain, "ratio": ratio, "unit": unit}


def _step_seconds(patched: Patched, labels: torch.Tensor, inputs: torch.Tensor) -> float:
    """One step; given images, the whole network is run as an ordinary frozen network would be."""
    patched.patch.train()
    optimizer = torch.optim.AdamW(patched.patch.parameters(), 1e-3)
    start = _now(inputs.device)
    F.cross_entropy(patched(inputs), labels).backward()
    optimizer.step()
    return _now(inputs.device) - start


@torch.no_grad()
def _pass_seconds(net: nn.Module, images: torch.Tensor) -> float:
    net.eval()
    start = _now(images.device)
    net(images)
    return _now(images.device) - start


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()
