"""What a patch costs to train and to run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from tempfile import TemporaryDirectory

import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from benches.timing import clock, compare, now, the_device
from recombine.core.types import Loader, Row
from recombine.data import open_data
from recombine.models import build
from recombine.models.graph import trace, traced
from recombine.patch.cached_features import CachedFeatureLoader
from recombine.patch.delta import Delta
from recombine.patch.patched import TaskNetwork
from recombine.patch.routing import Experts

__all__ = ["measure"]

SIDE, CLASSES = 224, 20
SMALL, EPOCHS, VIEWS, EXPERTS = 112, 50, 8, 5
"""Of the others: pixels a side, epochs (the paper's), views of an image that are kept, patches on one network."""


def measure() -> Iterator[Row]:
    """One module on cached prefix values against whole passes; a patched network against its base; a whole training."""
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
    yield _all_experts(device)
    yield _whole_training(device)


def _all_experts(device: torch.device) -> Row:
    """What a network and five patches on it answer for the same images: in one pass, against each by itself."""
    torch.manual_seed(0)
    net = build({"name": "torchvision:resnet18", "weights": None, "size": SMALL}, classes=CLASSES).to(device).eval()
    patched = [TaskNetwork(net, Delta(traced(net), CLASSES, modules=1)).to(device) for _ in range(EXPERTS)]
    images = torch.randint(256, (16, 3, SMALL, SMALL), dtype=torch.uint8, device=device)
    together = partial(_forward_seconds, Experts(net, patched), images)

    def alone() -> float:
        return sum(_forward_seconds(each, images) for each in (net, *patched))

    case = f"resnet18 at {SMALL} px and {EXPERTS} patches of one module, in one pass, against each alone"
    return compare(case, together, alone, f"{clock(device)} per 16 images", rounds=5)


def _whole_training(device: torch.device) -> Row:
    """50 epochs of augmented images in eight kept views, which are computed too, against new views in every epoch."""
    torch.manual_seed(0)
    net = build({"name": "torchvision:resnet18", "weights": None, "size": SMALL}, classes=CLASSES).to(device)
    patched = TaskNetwork(net, Delta(traced(net), CLASSES, modules=1)).to(device)
    node = {"name": "fake", "image_size": SMALL, "samples": 32, "classes": CLASSES, "augment": "flip_crop"}
    place: dict = {"loader": {"kind": "device", "workers": 0}, "data_root": "", "seed": 0, "device": device}
    with TemporaryDirectory() as cache:
        data = open_data(node, cache_root=cache, **place)
        loader = data.loader("train", 16, train=True)
        loader.views = VIEWS
        kept = partial(_training_seconds, patched, lambda: CachedFeatureLoader(loader, patched, "fp32"))
        case = f"resnet18 at {SMALL} px, one module, {EPOCHS} augmented epochs in {VIEWS} kept views, against new views"
        unit = f"{clock(device)} for {EPOCHS} epochs of 32 images"
        row = compare(case, kept, partial(_training_seconds, patched, lambda: loader), unit, rounds=1)
        data.close()
    return row


def _training_seconds(patched: TaskNetwork, make_loader: Callable[[], Loader]) -> float:
    """All epochs, with what the loader does once."""
    optimizer = torch.optim.AdamW(patched.patch.parameters(), 1e-3)
    device = next(patched.parameters()).device
    start, loader = now(device), make_loader()
    for epoch in range(EPOCHS):
        for batch in loader.epoch(epoch):
            patched.patch.train()
            optimizer.zero_grad()
            F.cross_entropy(patched(batch.images), batch.labels).backward()
            optimizer.step()
    return now(device) - start


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
