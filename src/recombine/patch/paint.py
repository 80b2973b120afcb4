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

from recombine.core.distributed import all_reduce_sum, world
from recombine.core.errors import ConfigError
from recombine.core.types import Loader
from recombine.models.model import Model, find_head, reset_head
from recombine.patch.metrics import harmonic_mean, mean, pooled

__all__ = ["ALPHAS", "Paint", "backbone", "interpolated", "recalibrate"]

ALPHAS = tuple(k / 10 for k in range(11))
SELECT = {"harmonic_mean": harmonic_mean, "mean": mean}
STATISTICS = ("interpolated", "recalibrated")
RECALIBRATION_BATCHES = 50


class Paint:
    """How the mixing weight is found; `select=fixed` with `alpha=1` is plain fine-tuning."""

    def __init__(
        self,
        alphas: Sequence[float] = ALPHAS,
        select: str = "harmonic_mean",
        alpha: float = 1.0,
        statistics: str = "interpolated",
    ) -> None:
        """`select`: harmonic_mean or mean of the accuracies on held-out data, or fixed at `alpha`.

        `statistics` of BatchNorm: interpolated like the weights (the paper's), or recalibrated on the task's images.
        """
        if problems := self.problems(alphas, select, alpha, statistics):
            raise ConfigError(problems)
        self.alphas, self.select, self.alpha, self.statistics = sorted(alphas), select, alpha, statistics

    @staticmethod
    def problems(
        alphas: Sequence[float] = ALPHAS,
        select: str = "harmonic_mean",
        alpha: float = 1.0,
        statistics: str = "interpolated",
        **_: object,
    ) -> list[str]:
        """What is wrong with the settings, one message each."""
        found = []
        if select not in (*SELECT, "fixed"):
            found.append(f"method.select={select}: one of {', '.join(SELECT)}, fixed is needed")
        if statistics not in STATISTICS:
            found.append(f"method.statistics={statistics}: one of {', '.join(STATISTICS)} is needed")
        if not isinstance(alphas, Sequence) or not alphas or not all(map(_is_share, alphas)):
            found.append(f"method.alphas={alphas}: a list of numbers from 0 to 1 is needed, such as [0,0.5,1]")
        if not _is_share(alpha):
            found.append(f"method.alpha={alpha}: a number from 0 to 1 is needed")
        return found

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


def _is_share(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


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
