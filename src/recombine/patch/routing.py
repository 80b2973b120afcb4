"""Finding the task of an image without its id (beyond the paper, which is told the id)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from recombine.engine.evaluate import Predictions, predict
from recombine.models import Model
from recombine.patch.patched import Patched
from recombine.patch.tasks import Task

if TYPE_CHECKING:
    from recombine.patch.workbench import Workbench

__all__ = ["WAYS", "measure", "nearest"]

WAYS = ("confidence", "features")
STATISTIC_IMAGES = 1000
ROUTED_IMAGES = 1000
"""Test images of each domain that are routed, spread over its test set: every expert has to see all of them."""


class Experts(nn.Module):
    """The base and its patches asked together: what each says and the base's features in one tensor, to be split."""

    def __init__(self, base: Model, patches: Sequence[Patched]) -> None:
        super().__init__()
        self.base, self.patches = base, nn.ModuleList(patches)

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] uint8 -> [B, E classes chosen | E confidences | D features], base first."""
        features, logits = self.base.features_and_logits(images)
        # patches of one method leave the base at the same place
        shared = self.patches[0].prefix(images) if self.patches else None
        answers = [said.softmax(1).max(1) for said in (logits, *(patch(shared) for patch in self.patches))]
        classes = torch.stack([answer.indices for answer in answers], 1)
        return torch.cat([classes, torch.stack([answer.values for answer in answers], 1), features], 1)


def measure(bench: Workbench, patches: Mapping[str, Patched], ways: Sequence[str]) -> dict[str, float]:
    """Percent of images sent to their own expert, and percent then classified right, over base and tasks alike.

    confidence: the expert (base or patch) with the largest softmax probability. features: the nearest mean of the
    base's features over training images of each task and, the one place where base data are used, of the base.
    """
    domains = [bench.base_task, *bench.tasks]
    experts = Experts(bench.base, [patches[task.name] for task in bench.tasks])
    parts = [len(domains), len(domains)]
    statistics = []
    if "features" in ways:
        for task in domains:
            features = _spread(bench, Experts(bench.base, []), task, "train", STATISTIC_IMAGES).logits[:, 2:]
            statistics.append((features.mean(0), features.var(0)))
    found, right = {way: 0.0 for way in ways}, {way: 0.0 for way in ways}
    for own, task in enumerate(domains):
        said = _spread(bench, experts, task, "test", ROUTED_IMAGES)
        classes, confidence, features = said.logits.tensor_split([parts[0], sum(parts)], 1)
        for way in ways:
            chosen = confidence.argmax(1) if way == "confidence" else nearest(features, statistics)
            hits = (classes[:, own] == said.labels) & (chosen == own)
            found[way] += float((chosen == own).double().mean() * 100) / len(domains)
            right[way] += float(hits.double().mean() * 100) / len(domains)
    return {f"routing_{way}": found[way] for way in ways} | {f"mean_routed_{way}": right[way] for way in ways}


def nearest(features: Tensor, statistics: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Domain [N] of the nearest mean for features [N, D], each dimension divided by the domains' common deviation."""
    spread = torch.stack([variance for _, variance in statistics]).mean(0).sqrt().clamp(min=1e-6)
    return torch.cdist(features / spread, torch.stack([mean / spread for mean, _ in statistics])).argmin(1)


def _spread(bench: Workbench, experts: Experts, task: Task, split: str, count: int) -> Predictions:
    """What the experts say about some `count` images spread over a split."""
    indices = task.data.indices(split)
    indices = indices[:: -(-len(indices) // count)]
    size = bench.base.canvas
    loader = task.data.loader(split, bench.cfg.eval_batch_size, train=False, indices=indices, size=size)
    return predict(experts, loader, precision=bench.engine.cfg.precision)
