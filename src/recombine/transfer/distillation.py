"""Learning from a teacher, from labels, from both, or from oneself (sections 3.1 to 3.3)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from recombine.core.types import Batch, Step
from recombine.engine.optim import ModelEma
from recombine.models import Model
from recombine.transfer.assignment import Flips, flips, shares
from recombine.transfer.losses import cross_entropy, kl_divergence, masked_mean
from recombine.transfer.method import Transfer, step
from recombine.transfer.options import flag, number, one_of
from recombine.transfer.teacher_cache import FrozenTeachers

__all__ = ["Distillation", "MomentumDistillation", "SelfDistillation"]

KL_SAMPLES = ("all", "not_negative", "positive")
AUTHORS_BATCH = 256
"""Batch size at which the authors give the interval of slow weights."""


class Distillation(Transfer):
    """L = w KL(teacher || student) + (1 - w) XE(labels): kl (w = 1), xekl, xe (w = 0) (sections 3.1, 3.2)."""

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
        """`topk` restricts KL to the teacher's largest logits; with `kl_weight` 0 the teacher is never asked.

        `kl_samples`: all, not_negative (without those only the current student gets right) or positive (only those
        the teacher alone gets right). `xe_on_probabilities` is the slip behind the published numbers.
        """
        number("kl_weight", kl_weight, 0.5, least=0, most=1)
        super().__init__(net, name=name, teachers=teachers if kl_weight > 0 else None, batchnorm=batchnorm)
        one_of("kl_samples", kl_samples, KL_SAMPLES)
        number("temperature", temperature, 1.0, above=0)
        if topk is not None:
            number("topk", topk, 100, least=1, whole=True)
        number("label_smoothing", label_smoothing, 0.1, least=0, most=1)
        flag("xe_on_probabilities", xe_on_probabilities)
        self.kl_weight, self.temperature, self.topk, self.kl_samples = kl_weight, temperature, topk, kl_samples
        self.label_smoothing, self.xe_on_probabilities = label_smoothing, xe_on_probabilities
        self.reads_labels = kl_weight < 1 or kl_samples != "all"

    def forward(self, batch: Batch) -> Step:
        """The weighted loss of one batch; a term without weight costs nothing.

        Where labels are read, the logs hold the flips of the teacher with respect to the current student.
        """
        student = self.net(batch.images)
        terms: dict[str, Tensor] = {}
        flipped: dict[str, Tensor] = {}
        if self.kl_weight > 0:
            (teacher,) = self.teachers(batch)
            flip = flips(student, teacher, batch.labels) if self.reads_labels else None
            terms["kl"] = self._kl(student, teacher, flip)
            flipped = {} if flip is None else shares(flip)
        if self.kl_weight < 1:
            terms["xe"] = cross_entropy(
                student,
                batch.labels,
                label_smoothing=self.label_smoothing,
                on_probabilities=self.xe_on_probabilities,
            ).mean()
        weights = {"kl": self.kl_weight, "xe": 1 - self.kl_weight}
        loss = sum(weights[term] * value for term, value in terms.items())
        return step(loss, terms | flipped)

    def _kl(self, student: Tensor, teacher: Tensor, flip: Flips | None) -> Tensor:
        values = kl_divergence(student, teacher, self.temperature, self.topk)
        if self.kl_samples == "all":
            return values.mean()
        return masked_mean(values, ~flip.negative if self.kl_samples == "not_negative" else flip.positive)


class MomentumDistillation(Distillation):
    """Distillation whose published weights follow the trained ones slowly: xekl_mcl (section 3.3).

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
        **options: Any,
    ) -> None:
        """`reset_fast_on_eval`: every evaluation sets the fast weights to the slow ones, as the authors' code does.

        `decay` is below 1, at which the slow weights, the result, would stay those of the initial student.
        `options` are those of `Distillation`.
        """
        super().__init__(net, teachers, **options)
        number("decay", decay, 0.9999, least=0, below=1)
        number("every", every, 2, above=0)
        flag("reset_fast_on_eval", reset_fast_on_eval)
        self.every = max(1, round(every * AUTHORS_BATCH / batch_size))
        self.reset_fast_on_eval = reset_fast_on_eval
        self.slow = ModelEma(net, decay)

    def after_update(self, step: int) -> None:
        """Move the slow weights."""
        if step % self.every == 0:
            self.slow.update()

    @contextmanager
    def measured(self) -> Iterator[None]:
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
    """The initial student teaches on every sample: the control without any teacher (section 3.6)."""

    reads_labels = False

    def __init__(
        self, net: Model, initial: FrozenTeachers, *, name: str, temperature: float = 1.0, batchnorm: str = "adapt"
    ) -> None:
        super().__init__(net, name=name, initial=initial, batchnorm=batchnorm)
        number("temperature", temperature, 1.0, above=0)
        self.temperature = temperature

    def forward(self, batch: Batch) -> Step:
        """KL to the initial student."""
        (target,) = self.initial(batch)
        return step(kl_divergence(self.net(batch.images), target, self.temperature).mean(), {})
