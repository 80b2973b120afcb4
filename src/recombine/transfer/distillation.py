"""Learning from a teacher, from labels, from both, or from oneself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from recombine.core.types import Batch, Step
from recombine.engine.optim import ModelEma
from recombine.models import Model
from recombine.transfer.losses import cross_entropy, kl_divergence, masked_mean
from recombine.transfer.method import Transfer, make_step
from recombine.transfer.sample_selection import find_flips, flip_percentages
from recombine.transfer.teacher_cache import FrozenTeachers

__all__ = ["Distillation", "MomentumDistillation", "SelfDistillation"]

AUTHORS_BATCH = 256
"""Batch size at which the authors give the interval of slow weights."""


class Distillation(Transfer):
    """L = w KL(teacher || student) + (1 - w) XE(labels): kl (w = 1), xekl, xe (w = 0)."""

    def __init__(
        self,
        net: Model,
        teachers: FrozenTeachers,
        *,
        name: str,
        kl_weight: float,
        temperature: float = 1.0,
        topk: int | None = None,
        kl_samples: str = "all",
        label_smoothing: float = 0.0,
        xe_on_probabilities: bool = False,
        batchnorm: str = "adapt",
    ) -> None:
        """`topk` restricts KL to the teacher's largest logits; with `kl_weight` 0 the teacher is never evaluated.

        `kl_samples`: all, not_negative (without those only the current student gets right) or positive (only those
        the teacher alone gets right). `xe_on_probabilities` reproduces an error behind the published numbers.
        """
        super().__init__(net, name=name, teachers=teachers if kl_weight > 0 else None, batchnorm=batchnorm)
        self.kl_weight, self.temperature, self.topk, self.kl_samples = kl_weight, temperature, topk, kl_samples
        self.label_smoothing, self.xe_on_probabilities = label_smoothing, xe_on_probabilities
        self.reads_labels = kl_weight < 1 or kl_samples != "all"

    def forward(self, batch: Batch) -> Step:
        """The weighted loss of one batch; a term without weight costs nothing.

        Where labels are read, the logs hold the flips of the teacher with respect to the current student.
        """
        student = self.net(batch.images)
        losses: dict[str, Tensor] = {}
        logs: dict[str, Tensor] = {}
        if self.kl_weight > 0:
            (teacher,) = self.teachers(batch)
            losses["kl"], logs = self._kl(student, teacher, batch.labels)
        if self.kl_weight < 1:
            losses["xe"] = cross_entropy(
                student,
                batch.labels,
                label_smoothing=self.label_smoothing,
                on_probabilities=self.xe_on_probabilities,
            ).mean()
        weights = {"kl": self.kl_weight, "xe": 1 - self.kl_weight}
        loss = torch.stack([weights[term] * value for term, value in losses.items()]).sum()
        return make_step(loss, losses | logs)

    def _kl(self, student: Tensor, teacher: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """KL of the samples that `kl_samples` selects, 0-d, and percentages of flips where labels are read."""
        values = kl_divergence(student, teacher, self.temperature, self.topk)
        if not self.reads_labels:
            return values.mean(), {}
        flips = find_flips(student, teacher, labels)
        masks = {"not_negative": ~flips.negative, "positive": flips.positive}
        loss = values.mean() if self.kl_samples == "all" else masked_mean(values, masks[self.kl_samples])
        return loss, flip_percentages(flips)


class MomentumDistillation(Distillation):
    """Distillation whose published weights follow the trained ones slowly: xekl_mcl.

        slow <- decay * slow + (1 - decay) * fast           every `every * 256 / batch_size` steps

    Deviation: the interval counts from the first step and not anew in each epoch; the same where it divides an epoch.
    """

    def __init__(
        self,
        net: Model,
        teachers: FrozenTeachers,
        batch_size: int,
        *,
        decay: float = 0.9999,
        every: float = 2,
        reset_fast_on_eval: bool = False,
        start_after_first_step: bool = False,
        **options: Any,
    ) -> None:
        """`reset_fast_on_eval`: every evaluation sets the fast weights to the slow ones, as the authors' code does.
        `start_after_first_step`: slow weights start there, as in their code, and not at the initial student.

        `decay` is below 1, at which the slow weights, the result, would stay those of the initial student.
        `options` are those of `Distillation`.
        """
        super().__init__(net, teachers, **options)
        self.every = max(1, round(every * AUTHORS_BATCH / batch_size))
        self.reset_fast_on_eval, self.start_after_first_step = reset_fast_on_eval, start_after_first_step
        self.slow = ModelEma(net, decay)

    def after_update(self, step: int) -> None:
        """Move the slow weights."""
        if step == 0 and self.start_after_first_step:
            self.slow.restart()
        if step % self.every == 0:
            self.slow.update()

    @contextmanager
    def evaluation_weights(self) -> Iterator[None]:
        """Run a block with the slow weights."""
        if self.reset_fast_on_eval:
            self.slow.publish()
            yield
        else:
            with self.slow.swapped():
                yield

    def publish(self) -> None:
        """The slow weights are the result."""
        self.slow.publish()


class SelfDistillation(Transfer):
    """The initial student teaches on every sample: the control without any teacher."""

    reads_labels = False

    def __init__(
        self, net: Model, initial: FrozenTeachers, *, name: str, temperature: float = 1.0, batchnorm: str = "adapt"
    ) -> None:
        super().__init__(net, name=name, initial=initial, batchnorm=batchnorm)
        self.temperature = temperature

    def forward(self, batch: Batch) -> Step:
        """KL to the initial student."""
        (target,) = self.initial(batch)
        return make_step(kl_divergence(self.net(batch.images), target, self.temperature).mean(), {})
