"""Finding the task of an image without its id (beyond the paper, which is told the id)."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from src.core.evaluate import evaluating, predict
from src.core.metrics import Accuracy
from src.core.types import Loader
from src.patch.patched import Patched
from src.patch.tasks import Task

if TYPE_CHECKING:
    from src.patch.workbench import Workbench

__all__ = ["WAYS", "measure", "nearest", "top"]

WAYS = ("confidence", "features")
STATISTIC_IMAGES = 2000
ROUTED_IMAGES = 2000
"""Test images of each domain that are routed, spread over its test set: every expert has to see all of them."""


def measure(bench: Workbench, patches: Mapping[str, Patched], way: str) -> dict[str, float]:
    """Percent of images sent to their own expert, and percent then classified right, over base and tasks alike.

    confidence: the expert (base or patch) with the largest softmax probability. features: the nearest mean of the
    base's features over training images of each task and, the one place where base data are used, of the base.
    """
    domains = [bench.base_task, *bench.tasks]
    experts = [bench.base, *(patches[task.name] for task in bench.tasks)]
    statistics = [_statistics(bench, task) for task in domains] if way == "features" else []
    found, right = [], []
    for own, task in enumerate(domains):
        loader, precision = _spread(bench, task, "test", ROUTED_IMAGES), bench.engine.cfg.precision
        predictions = [predict(expert, loader, precision=precision) for expert in experts]
        if way == "confidence":
            chosen = torch.stack([p.logits.softmax(1).amax(1) for p in predictions]).argmax(0)
        else:
            chosen = nearest(_features(bench, loader), statistics)
        hits = (predictions[own].logits.argmax(1) == predictions[own].labels) & (chosen == own)
        found.append(float((chosen == own).double().mean() * 100))
        right.append(float(hits.double().mean() * 100))
    return {f"routing_{way}": sum(found) / len(found), f"mean_routed_{way}": sum(right) / len(right)}


def nearest(features: Tensor, statistics: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Domain [N] of the nearest mean for features [N, D], each dimension divided by the domains' common deviation."""
    spread = torch.stack([variance for _, variance in statistics]).mean(0).sqrt().clamp(min=1e-6)
    return torch.cdist(features / spread, torch.stack([mean / spread for mean, _ in statistics])).argmin(1)


def _statistics(bench: Workbench, task: Task) -> tuple[Tensor, Tensor]:
    features = _features(bench, _spread(bench, task, "train", STATISTIC_IMAGES))
    return features.mean(0), features.var(0)


def _spread(bench: Workbench, task: Task, split: str, count: int) -> Loader:
    """A loader of about `count` images spread over a split."""
    indices = task.data.indices(split)
    indices = indices[:: -(-len(indices) // count)]
    size = bench.base.canvas
    return task.data.loader(split, bench.cfg.eval_batch_size, train=False, indices=indices, size=size)


def _features(bench: Workbench, loader: Loader) -> Tensor:
    """The base's features of all images, [N, D] on the CPU."""
    with evaluating(bench.base), closing(loader.epoch(0)) as batches:
        return torch.cat([bench.base.features(batch.images).cpu() for batch in batches])


def top(classes: int) -> Accuracy:
    """Top-1, and top-5 where there are more than five classes."""
    return Accuracy((1, 5) if classes > 5 else (1,))
