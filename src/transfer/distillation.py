"""Learning from a teacher, from labels, from both, or from oneself (sections 3.1 to 3.3)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from src.core.errors import ConfigError
from src.core.optim import Averaged
from src.core.types import Batch, Step
from src.models import Model
from src.transfer.base import Transfer, one_of, positive, step
from src.transfer.frozen import Frozen
from src.transfer.losses import cross_entropy, kl_divergence, masked_mean
from src.transfer.partition import flips

__all__ = ["Distillation", "MomentumDistillation", "SelfDistillation"]

KL_SAMPLES = ("all", "not_negative", "positive")
AUTHORS_BATCH = 256
"""Batch size at which the authors give the interval of slow weights."""


class Distillation(Transfer):
    """L = w KL(teacher || student) + (1 - w) XE(labels): kl (w = 1), xekl, xe (w = 0) (sections 3.1, 3.2)."""

    def __init__(
        self,
        net: Model,
        teachers: Frozen,
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
        """`topk` restricts KL to the teacher's largest logits.

        `kl_samples`: all, not_negative (without those only the current student gets right) or positive (only those
        the teacher alone gets right). `xe_on_probabilities` is the slip behind the published numbers.
        """
        super().__init__(net, name=name, teachers=teachers, batchnorm=batchnorm)
        one_of("kl_samples", kl_samples, KL_SAMPLES)
        if not 0 <= kl_weight <= 1:
            raise ConfigError(f"method.kl_weight={kl_weight}: a number from 0 (only labels) to 1 (only the teacher)")
        positive("temperature", temperature)
        self.kl_weight, self.temperature, self.topk, self.kl_samples = kl_weight, temperature, topk, kl_samples
        self.label_smoothing, self.xe_on_probabilities = label_smoothing, xe_on_probabilities
        self.reads_labels = kl_weight < 1 or kl_samples != "all"

    def forward(self, batch: Batch) -> Step:
        """The weighted loss of one batch; a term without weight costs nothing."""
        student = self.net(batch.images)
        terms: dict[str, Tensor] = {}
        if self.kl_weight > 0:
            terms["kl"] = self._kl(student, batch)
        if self.kl_weight < 1:
            terms["xe"] = cross_entropy(
                student,
                batch.labels,
                label_smoothing=self.label_smoothing,
                on_probabilities=self.xe_on_probabilities,
            ).mean()
        weights = {"kl": self.kl_weight, "xe": 1 - self.kl_weight}
        loss = sum(weights[term] * value for term, value in terms.items())
        return step(loss, terms)

    def _kl(self, student: Tensor, batch: Batch) -> Tensor:
        (teacher,) = self.teachers(batch)
        values = kl_divergence(student, teacher, self.temperature, self.topk)
        if self.kl_samples == "all":
            return values.mean()
        flip = flips(student, teacher, batch.labels)
        return masked_mean(values, ~flip.negative if self.kl_samples == "not_negative" else flip.positive)


class MomentumDistillation(Distillation):
    """Distillation whose published weights follow the trained ones slowly: xekl_mcl (section 3.3).

        slow <- decay * slow + (1 - decay) * fast           every `every * 256 / batch_size` steps

    Deviation: the interval counts from the first step and not anew in each epoch; the same where it divides an epoch.
    """

    def __init__(
        self,
        net: Model,
        teachers: Frozen,
        batch_size: int,
        *,
        decay: float = 0.9999,
        every: float = 2,
        reset_fast_on_eval: bool = False,
        **options: Any,
    ) -> None:
        """`reset_fast_on_eval`: every evaluation sets the fast weights to the slow ones, as the authors' code does.

        `options` are those of `Distillation`.
        """
        super().__init__(net, teachers, **options)
        positive("every", every)
        self.every = max(1, round(every * AUTHORS_BATCH / batch_size))
        self.reset_fast_on_eval = reset_fast_on_eval
        self.slow = Averaged(net, decay)

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
        self, net: Model, initial: Frozen, *, name: str, temperature: float = 1.0, batchnorm: str = "adapt"
    ) -> None:
        super().__init__(net, name=name, initial=initial, batchnorm=batchnorm)
        positive("temperature", temperature)
        self.temperature = temperature

    def forward(self, batch: Batch) -> Step:
        """KL to the initial student."""
        (target,) = self.initial(batch)
        return step(kl_divergence(self.net(batch.images), target, self.temperature).mean(), {})
