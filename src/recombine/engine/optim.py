"""Learning-rate schedules by optimizer step, and weight averages."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from recombine.core.errors import ConfigError

__all__ = ["ModelEma", "constant", "cosine", "linear", "step"]


def constant(optimizer: Optimizer, steps: int, *, warmup: float = 0) -> LambdaLR:
    """The optimizer's own learning rate throughout, after the warm-up."""
    return _schedule(optimizer, steps, warmup, lambda progress: 1.0)


def cosine(optimizer: Optimizer, steps: int, *, warmup: float = 0, min_lr_ratio: float = 0.0) -> LambdaLR:
    """Half a cosine from the learning rate to `min_lr_ratio` times it.

    Loshchilov and Hutter, 2017, eq. 5, one period.
    """
    return _schedule(
        optimizer,
        steps,
        warmup,
        lambda progress: min_lr_ratio + (1 - min_lr_ratio) * (1 + math.cos(math.pi * progress)) / 2,
    )


def linear(optimizer: Optimizer, steps: int, *, warmup: float = 0, min_lr_ratio: float = 0.0) -> LambdaLR:
    """A straight line from the learning rate to `min_lr_ratio` times it."""
    return _schedule(optimizer, steps, warmup, lambda progress: 1 + (min_lr_ratio - 1) * progress)


def step(
    optimizer: Optimizer, steps: int, *, milestones: Sequence[float], gamma: float = 0.1, warmup: float = 0
) -> LambdaLR:
    """Multiply the learning rate by `gamma` at each milestone: a fraction of all steps below 1, else a step number."""
    after = [_steps("milestones", milestone, steps) for milestone in milestones]
    before = _warmup(warmup, steps)
    return LambdaLR(optimizer, lambda now: gamma ** sum(now >= m for m in after) * min(1.0, (now + 1) / (before + 1)))


def _schedule(optimizer: Optimizer, steps: int, warmup: float, shape: Callable[[float], float]) -> LambdaLR:
    """Rise linearly over the warm-up steps, then follow `shape` over the remaining ones (progress 0 to 1)."""
    before = _warmup(warmup, steps)
    remaining = max(1, steps - before)

    def factor(now: int) -> float:
        return (now + 1) / (before + 1) if now < before else shape(min(1.0, (now - before) / remaining))

    return LambdaLR(optimizer, factor)


def _warmup(warmup: float, steps: int) -> int:
    before = _steps("warmup", warmup, steps)
    if before > steps:
        raise ConfigError(
            f"schedule.warmup={warmup} is longer than the training of {steps} steps; "
            "give a fraction of it, for example schedule.warmup=0.05"
        )
    return before


def _steps(name: str, value: float, steps: int) -> int:
    if value < 0 or (value >= 1 and value != int(value)):
        raise ConfigError(
            f"schedule.{name}={value}: give a fraction of the training below 1 or a whole number of steps"
        )
    return round(value * steps) if value < 1 else int(value)


class ModelEma(nn.Module):
    """Exponential moving average of a module's trained parameters and floating buffers.

        average <- decay * average + (1 - decay) * live          at each `update`

    Integer buffers (BatchNorm's counter) are not averaged, and parameters that do not train cannot change. As a
    sub-module of a method the average travels in its checkpoints; it does not own the module it follows.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ConfigError(
                f"engine.ema_decay={decay}: a number of at least 0 and less than 1 is needed, such as 0.999"
            )
        self.decay = decay
        self._module = (module,)  # in a tuple, or it would be registered and saved a second time
        self._live: list[Tensor] = []
        for position, value in enumerate(self._followed()):
            self.register_buffer(f"average{position}", value.detach().clone())

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the live weights."""
        if not self._live:  # not before the first use: moving a module to a device replaces its buffers
            self._live = self._followed()
            self._average = list(self.buffers())
        torch._foreach_lerp_(self._average, self._live, 1 - self.decay)

    def restart(self) -> None:
        """Begin anew from the live weights."""
        torch._foreach_copy_(list(self.buffers()), [value.detach() for value in self._followed()])

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Run a block with the averaged weights in the module."""
        live = self._followed()
        kept = [value.detach().clone() for value in live]
        self.publish()
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(live, kept)

    @torch.no_grad()
    def publish(self) -> None:
        """Write the average into the module for good."""
        torch._foreach_copy_(self._followed(), list(self.buffers()))

    def _followed(self) -> list[Tensor]:
        (module,) = self._module
        saved = module.state_dict(keep_vars=True).values()
        return [v for v in saved if v.is_floating_point() and (v.requires_grad or not isinstance(v, nn.Parameter))]
