"""PAINT for convolutional networks: fine-tune everything, then interpolate with the original weights.

    theta(alpha) = (1 - alpha) theta_0 + alpha theta_1       over the whole state of the backbone

The new classifier stays the fine-tuned one; base accuracy is measured with the base's classifier.
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
from recombine.patch.settings import Paint

__all__ = ["backbone", "choose_alpha", "interpolate", "load_backbone", "recalibrate", "with_backbone", "with_new_head"]

SELECT = {"harmonic_mean": harmonic_mean, "mean": mean}
RECALIBRATION_BATCHES = 50


def choose_alpha(
    method: Paint, accuracies: Callable[[float], list[float]], sizes: Sequence[int] | None = None
) -> tuple[float, dict[float, list[float]]]:
    """The best alpha and the curve; `accuracies(alpha)` measures base and tasks on held-out data.

    `sizes` of the tasks' sets, where they count as one concatenated set beside the base (joint runs).
    Of equal values the smallest alpha is taken: it is the closest to the base.
    """
    if method.select == "fixed":
        return method.alpha, {}
    curve = {alpha: accuracies(alpha) for alpha in sorted(method.alphas)}
    summarise = SELECT[method.select]

    def score(alpha: float) -> float:
        base, *tasks = curve[alpha]
        return summarise([base, *([pooled(tasks, sizes)] if sizes else tasks)])

    return max(curve, key=lambda alpha: (score(alpha), -alpha)), curve


def with_new_head(base: Model, classes: int) -> Model:
    """A copy of the base to fine-tune, with a new classifier."""
    model = copy.deepcopy(base)
    model.net.requires_grad_(True)
    reset_head(model.net, base.classes, classes)
    model.classes = classes
    return model


def backbone(model: Model) -> dict[str, Tensor]:
    """Copies of the state of everything but the classifier."""
    head = find_head(model.net, model.classes) + "."
    return {key: value.detach().clone() for key, value in model.net.state_dict().items() if not key.startswith(head)}


def load_backbone(model: Model, state: Mapping[str, Tensor]) -> Model:
    """`model` with this backbone, in place; ConfigError if it has other layers."""
    missing = model.net.load_state_dict(state, strict=False)
    if missing.unexpected_keys:
        raise ConfigError(f"the backbone of {model.name} has other layers: {', '.join(missing.unexpected_keys[:3])}")
    return model


def with_backbone(base: Model, state: Mapping[str, Tensor]) -> Model:
    """A copy of the base with another backbone and its own classifier."""
    return load_backbone(copy.deepcopy(base), state)


def interpolate(start: Mapping[str, Tensor], end: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """The state between two; at 0 and 1 exactly the ends. Counters, which are integers, are those of the end."""

    def between(a: Tensor, b: Tensor) -> Tensor:
        return torch.lerp(a, b, alpha) if a.is_floating_point() else b

    if alpha == 0:
        return dict(start)
    return dict(end) if alpha == 1 else {key: between(start[key], end[key]) for key in start}


@torch.no_grad()
def recalibrate(model: nn.Module, loader: Loader) -> None:
    """Estimate the BatchNorm statistics of `model` anew, as averages over the first batches of `loader`.

    The batches should be mixed: the variance within batches of one class is not that of the set.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.train()
        norm.momentum = None  # the average of all batches
    with closing(loader.epoch(0)) as batches:
        for batch in islice(batches, RECALIBRATION_BATCHES):
            model(batch.images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        for value in (norm.running_mean, norm.running_var):
            all_reduce_sum(value).div_(world())  # type: ignore[arg-type]  # each process saw a part of the batches
    model.eval()
