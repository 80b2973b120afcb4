"""PAINT for convolutional networks: fine-tune everything, then mix the weights with the original ones (section 5.4).

    theta(alpha) = (1 - alpha) theta_0 + alpha theta_1       over the whole state of the backbone

The new classifier stays the fine-tuned one; base accuracy is measured with the base's own classifier.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from itertools import islice

import torch
from torch import Tensor, nn

from src.core.distributed import all_reduce_sum, world
from src.core.errors import ConfigError
from src.core.types import Loader
from src.models.model import Model, find_head, reset_head
from src.patch.measures import harmonic_mean, mean, pooled

__all__ = ["Paint", "backbone", "interpolated", "recalibrate"]

SELECT = {"harmonic_mean": harmonic_mean, "mean": mean}
STATISTICS = ("interpolated", "recalibrated")
RECALIBRATION_BATCHES = 50


class Paint:
    """How the mixing weight is found; `select=fixed` with `alpha=1` is plain fine-tuning."""

    def __init__(
        self,
        alphas: Sequence[float] = tuple(k / 10 for k in range(11)),
        select: str = "harmonic_mean",
        alpha: float = 1.0,
        statistics: str = "interpolated",
    ) -> None:
        """`select`: harmonic_mean or mean of the accuracies on held-out data, or fixed at `alpha`.

        `statistics` of BatchNorm: interpolated like the weights (the paper's), or recalibrated on the task's images.
        """
        problems = []
        if select not in (*SELECT, "fixed"):
            problems.append(f"method.select={select}: one of {', '.join(SELECT)}, fixed is needed")
        if statistics not in STATISTICS:
            problems.append(f"method.statistics={statistics}: one of {', '.join(STATISTICS)} is needed")
        if not alphas or not all(0 <= a <= 1 for a in (*alphas, alpha)):
            problems.append(f"method.alphas={list(alphas)}, method.alpha={alpha}: numbers from 0 to 1 are needed")
        if problems:
            raise ConfigError(problems)
        self.alphas, self.select, self.alpha, self.statistics = sorted(alphas), select, alpha, statistics

    def choose(
        self, accuracies: Callable[[float], list[float]], together: Sequence[int] | None = None
    ) -> tuple[float, dict[float, list[float]]]:
        """The best alpha and the curve; `accuracies(alpha)` measures base and tasks on held-out data.

        `together`: sizes of the tasks' sets, where they count as one concatenated set beside the base (joint runs).
        Of equal values the smallest alpha is taken: it is nearest to the base.
        """
        if self.select == "fixed":
            return self.alpha, {}
        curve = {alpha: accuracies(alpha) for alpha in self.alphas}

        def score(alpha: float) -> float:
            base, *tasks = curve[alpha]
            return SELECT[self.select]([base, *([pooled(tasks, together)] if together else tasks)])

        return max(curve, key=lambda alpha: (score(alpha), -alpha)), curve


def tunable(base: Model, classes: int) -> Model:
    """A copy of the base to fine-tune, with a new classifier."""
    model = copy.deepcopy(base)
    model.net.requires_grad_(True)
    reset_head(model.net, base.classes, classes)
    model.classes = classes
    return model


def backbone(net: nn.Module, classes: int) -> dict[str, Tensor]:
    """Copies of the state of everything but the classifier."""
    head = find_head(net, classes) + "."
    return {key: value.detach().clone() for key, value in net.state_dict().items() if not key.startswith(head)}


def interpolated(start: Mapping[str, Tensor], end: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """The mixed state; at 0 and 1 exactly the ends. Counters, which are integers, are those of the end."""

    def mix(a: Tensor, b: Tensor) -> Tensor:
        return torch.lerp(a, b, alpha) if a.is_floating_point() else b

    if alpha == 0:
        return dict(start)
    return dict(end) if alpha == 1 else {key: mix(start[key], end[key]) for key in start}


@torch.no_grad()
def recalibrate(model: nn.Module, loader: Loader) -> None:
    """Estimate the BatchNorm statistics of `model` anew, as plain averages over the first batches of `loader`.

    The batches should be mixed: the variance within batches of one class is not that of the set.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.train()
        norm.momentum = None  # a plain average
    with closing(loader.epoch(0)) as batches:
        for batch in islice(batches, RECALIBRATION_BATCHES):
            model(batch.images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        for value in (norm.running_mean, norm.running_var):
            all_reduce_sum(value).div_(world())  # each process saw its own share of the batches
    model.eval()
