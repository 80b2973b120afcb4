"""Finding the task of an image without its id (beyond the paper, which is told the id)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from recombine.engine.evaluate import Predictions, predict
from recombine.models import Model
from recombine.patch.patched import TaskNetwork
from recombine.patch.tasks import Task

__all__ = ["evaluate", "nearest"]

STATISTIC_IMAGES = 1000
ROUTED_IMAGES = 1000
"""Test images of each domain that are routed, spread over its test set: every expert has to see all of them."""


class Experts(nn.Module):
    """Base and patches in one forward pass: the class that each predicts, its confidence, and the base's features."""

    def __init__(self, base: Model, patches: Sequence[TaskNetwork]) -> None:
        super().__init__()
        self.base, self.patches = base, nn.ModuleList(patches)
        self.prefix = patches[0].prefix if patches else None  # patches of one method leave the base at the same place

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] uint8 -> [B, E predicted classes | E confidences | D features], base first."""
        features, logits = self.base.features_and_logits(images)
        all_logits = [logits]
        if self.prefix is not None:
            shared = self.prefix(images)
            all_logits += [network(shared) for network in self.patches]
        best = [each.softmax(1).max(1) for each in all_logits]
        classes = torch.stack([found.indices for found in best], 1)
        return torch.cat([classes, torch.stack([found.values for found in best], 1), features], 1)


def evaluate(
    precision: str, base: Task, tasks: Sequence[Task], networks: Mapping[str, TaskNetwork], routings: Sequence[str]
) -> dict[str, float]:
    """Percent of images sent to the expert of their task, and percent then classified right, over base and tasks alike.

    confidence: the expert (base or patch) with the largest softmax probability. features: the nearest mean of the
    base's features over training images of each task and, the one place where base data are used, of the base.
    """
    domains = [base, *tasks]
    experts = Experts(base.model, [networks[task.name] for task in tasks])
    statistics = []
    if "features" in routings:
        for task in domains:
            features = _predict_some(precision, Experts(base.model, []), task, "train", STATISTIC_IMAGES).logits[:, 2:]
            statistics.append((features.mean(0), features.var(0)))
    found, right = dict.fromkeys(routings, 0.0), dict.fromkeys(routings, 0.0)
    for number, task in enumerate(domains):
        predictions = _predict_some(precision, experts, task, "test", ROUTED_IMAGES)
        parts = predictions.logits.tensor_split([len(domains), 2 * len(domains)], 1)
        classes, confidence, features = parts
        for routing in routings:
            expert = confidence.argmax(1) if routing == "confidence" else nearest(features, statistics)
            hits = (classes[:, number] == predictions.labels) & (expert == number)
            found[routing] += float((expert == number).double().mean() * 100) / len(domains)
            right[routing] += float(hits.double().mean() * 100) / len(domains)
    return {f"routing_{key}": found[key] for key in routings} | {f"mean_routed_{key}": right[key] for key in routings}


def nearest(features: Tensor, statistics: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Domain [N] of the nearest mean for features [N, D], each dimension divided by the domains' common deviation."""
    spread = torch.stack([variance for _, variance in statistics]).mean(0).sqrt().clamp(min=1e-6)
    return torch.cdist(features / spread, torch.stack([mean / spread for mean, _ in statistics])).argmin(1)


def _predict_some(precision: str, experts: Experts, task: Task, split: str, count: int) -> Predictions:
    """What the experts predict for about `count` images spread over a split."""
    indices = task.data.indices(split)
    return predict(experts, task.subset(split, indices[:: -(-len(indices) // count)]), precision=precision)
