"""Races: a network that is surely worse than a cheaper one is dropped before it has seen all images."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from recombine.core.distributed import all_reduce_sum
from recombine.stitch.pareto import front
from recombine.stitch.tasks import Task

__all__ = ["FIRST_IMAGES", "Answers", "Heat", "NetworkScores", "Rivals", "in_stages"]

FIRST_IMAGES = 32
"""Images after which networks are compared for the first time; then after twice as many, and so on."""

Batches = list[tuple[Tensor, Tensor]]
"""Images uint8 [B, 3, H, W] and labels [B, ...]."""


class NetworkScores(NamedTuple):
    """Results of one network on the search images."""

    accuracy: float
    """The score of the task, 0..1: accuracy or mIoU; 0 if the logits are not finite."""
    loss: float
    """Mean cross entropy."""
    cost: float
    """Multiply-adds of one image."""
    images: int
    """Images that it has seen; if not all, it was dropped early, and accuracy and loss are estimates."""

    def objectives(self, performance: str) -> tuple[float, float]:
        """Both minimised: minus the score or the loss, and the cost; infinite for what was not run."""
        if not self.images:
            return math.inf, math.inf
        return self.loss if performance == "loss" else -self.accuracy, float(self.cost)


def in_stages(batches: Batches) -> list[Batches]:
    """The images in random order: the first `FIRST_IMAGES`, as many again, twice as many, and so on."""
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0)).to(labels.device)
    size = max(len(batch) for batch, _ in batches)
    stages, start, end = [], 0, FIRST_IMAGES
    while start < len(order):
        parts = order[start:end].split(size)
        stages.append([(images[part], labels[part]) for part in parts])
        start, end = end, 2 * end
    return stages


class Answers:
    """What the networks of a pass score on the images they have seen."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.counts: list[Tensor] = []
        self.losses: list[Tensor] = []

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Of one batch: [G, B, C, ...] and [B, ...]."""
        self.counts.append(self.task.count(logits, labels))
        self.losses.append(self.task.losses(logits, labels))

    def keep(self, mask: np.ndarray) -> None:
        """Go on with some of the networks, bool [G]."""
        chosen = torch.from_numpy(np.flatnonzero(mask)).to(self.losses[0].device)
        self.counts, self.losses = [torch.cat(self.counts, 1)[chosen]], [torch.cat(self.losses, 1)[chosen]]

    def by_image(self, performance: str) -> Tensor:
        """What is compared, float32 [G, n, K]: the counts of the task, or minus the loss."""
        return -torch.cat(self.losses, 1)[..., None] if performance == "loss" else torch.cat(self.counts, 1)

    def means(self) -> tuple[np.ndarray, np.ndarray, int]:
        """Score and mean loss of each network over all processes, and the number of images."""
        counts, losses = torch.cat(self.counts, 1), torch.cat(self.losses, 1)
        totals = torch.cat([counts.double().sum(1), losses.double().sum(1, keepdim=True)], 1).cpu()
        count = int(all_reduce_sum(torch.tensor(losses.shape[1])))
        *sums, loss = all_reduce_sum(totals).unbind(1)
        return self.task.value(torch.stack(sums, 1), count).numpy(), (loss / count).numpy(), count


class Rivals:
    """The front of the networks that were measured on all images, with what each scored on every image.

    A network is dropped if it is worse than the best rival that costs no more: of the differences d of their scores on
    the images seen so far, sum d / sqrt(sum d^2) is above sqrt(2 log 1 / alpha). If neither were better, the sign of
    each d would be a fair coin, and that would happen with a probability of at most alpha (Hoeffding, 1963). With right
    and wrong answers as scores this is McNemar's test. What d is of a mIoU, `Task.differences` says.
    """

    def __init__(self, alpha: float, differences: Callable[[Tensor, Tensor], Tensor]) -> None:
        """`differences` of two networks each, [G, n, K] and [G, n, K] -> [G, n]: how much better the second are."""
        self.limit, self.differences = math.sqrt(2 * math.log(1 / alpha)), differences
        self.objectives = np.empty((0, 2))
        self.scores: list[Tensor] = []
        """float32 [N, K] of each: this process' images, in their order."""

    def add(self, objectives: np.ndarray, scores: Tensor) -> None:
        """Networks that were measured on all images: objectives [n, 2], both minimised, and scores [n, N, K]."""
        everything, known = np.concatenate([self.objectives, objectives]), [*self.scores, *scores]
        kept = front(everything)
        self.objectives, self.scores = everything[kept], [known[k] for k in kept]

    def best(self, costs: Sequence[int]) -> np.ndarray:
        """For each cost, the best rival that costs no more, int [n]; -1 if there is none."""
        affordable = self.objectives[:, 1] <= np.array(costs)[:, None]  # rivals are sorted, the best first
        return np.where(affordable.any(1), affordable.argmax(1), -1) if len(self.scores) else np.full(len(costs), -1)

    def compare(self, scores: Tensor, rivals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Networks (scores [G, n, K] of the first n images) against one rival each (-1: none).

        How much better each rival is on average, and whether that is sure: float64 and bool [G], over all processes.
        """
        seen = scores.shape[1]
        others = torch.stack([self.scores[k][:seen] if k >= 0 else own for k, own in zip(rivals, scores, strict=True)])
        ahead = self.differences(scores, others)
        sums = torch.stack([ahead.sum(1), ahead.square().sum(1), torch.full_like(ahead[:, 0], seen)]).cpu()
        total, squares, count = all_reduce_sum(sums).numpy()
        return total / count, total > self.limit * np.sqrt(squares)


class Heat:
    """One pass of several networks: those that were dropped with estimates, the others with what they scored."""

    def __init__(
        self, rivals: Rivals | None, performance: str, genotypes: Sequence[np.ndarray], costs: Sequence[int], race: bool
    ) -> None:
        """`race` False: none is dropped; parents and their ensemble, which have no stitch, never are."""
        self.rivals, self.performance, self.costs = rivals, performance, costs
        self.left = np.arange(len(genotypes))
        self.found: dict[int, NetworkScores] = {}
        stitched = np.array([race and genotype[:-1].any() for genotype in genotypes])
        self.rival = np.where(stitched, rivals.best(costs), -1) if rivals else None
        """The rival of each, -1: none."""

    def drop(self, answers: Answers) -> np.ndarray:
        """Which of the networks that are left are dropped now, bool [G].

        The estimate is what the rival scores on all images minus how far it is ahead on those seen so far.
        """
        if self.rivals is None or self.rival is None:
            return np.zeros(len(self.left), bool)
        ahead, dropped = self.rivals.compare(answers.by_image(self.performance), self.rival[self.left])
        accuracy, loss, seen = answers.means()
        for k in np.flatnonzero(dropped):
            place = int(self.left[k])
            estimate = float(self.rivals.objectives[self.rival[place], 0] + ahead[k])
            by_loss = self.performance == "loss"
            known = (float(accuracy[k]), estimate) if by_loss else (max(-estimate, 0.0), float(loss[k]))
            self.found[place] = NetworkScores(*known, self.costs[place], seen)
        self.left = self.left[~dropped]
        return dropped

    def finish(self, answers: Answers) -> list[NetworkScores]:
        """The scores of all networks in their order; those that are left become rivals of later ones."""
        accuracy, loss, seen = answers.means()
        for k, place in enumerate(self.left.tolist()):
            finite = math.isfinite(loss[k])
            known = (float(accuracy[k]), float(loss[k])) if finite else (0.0, math.inf)
            self.found[place] = NetworkScores(*known, self.costs[place], seen)
        if self.rivals is not None:
            measured = [self.found[place].objectives(self.performance) for place in self.left.tolist()]
            self.rivals.add(np.reshape(measured, (-1, 2)), answers.by_image(self.performance))
        return [self.found[place] for place in range(len(self.costs))]
