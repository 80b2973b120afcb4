"""Any mask with any loss: what to learn from whom, times how."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn import functional as F

from recombine.core.distributed import divisor
from recombine.core.errors import ConfigError
from recombine.core.types import Batch, Step
from recombine.models import Model
from recombine.transfer.composed_settings import wrong_temperatures
from recombine.transfer.contrastive import ContrastiveSamples
from recombine.transfer.features import read_features
from recombine.transfer.losses import DistillationLoss, cross_entropy
from recombine.transfer.masks import Mask, mix
from recombine.transfer.method import Transfer, make_step
from recombine.transfer.sample_selection import find_flips, flip_percentages, percentage
from recombine.transfer.teacher_cache import FrozenTeachers

__all__ = ["ComposedDistillation", "fit_temperature"]


class ComposedDistillation(Transfer):
    """L = w mean_i D(target_i, student_i) + (1 - w) XE, with targets by a mask and D by a loss.

    The mean is over the samples that the mask gives to somebody. The paper's methods are points of it: mask=dp loss=kl
    is kl_dp, mask=dp_u loss=kl is kl_dp_u, mask=teacher loss=kl is kl, mask=initial loss=kl is self_dist.
    """

    many_teachers = True

    def __init__(
        self,
        net: Model,
        teachers: FrozenTeachers,
        initial: FrozenTeachers,
        *,
        name: str,
        mask: Mask,
        loss: DistillationLoss,
        kd_weight: float = 1.0,
        temperatures: Sequence[float] | str | None = None,
        batchnorm: str = "adapt",
        samples: ContrastiveSamples | None = None,
        epochs: int = 1,
    ) -> None:
        """`kd_weight` is w; below 1, labels are read. `temperatures` divide the logits of the frozen networks, the
        initial student first, before they are targets; calibrated: those that fit validation images best. `samples` are
        for a loss with a memory, `epochs` for one with a schedule.
        """
        super().__init__(net, name=name, teachers=teachers, initial=initial, batchnorm=batchnorm)
        self.mask, self.loss, self.kd_weight, self.epochs = mask, loss, kd_weight, epochs
        self.calibrated = mask.calibrated or temperatures == "calibrated"
        self.fits_targets = temperatures == "calibrated"
        self.temperatures = None if isinstance(temperatures, str) else temperatures
        self.reads_labels = mask.reads_labels or loss.reads_labels or kd_weight < 1
        self.reads_logits = not loss.reads_features
        models = [*initial.models, *teachers.models]
        if self.temperatures is not None and len(self.temperatures) != len(models):
            raise ConfigError(wrong_temperatures(len(self.temperatures), len(models)))
        if loss.reads_features:
            loss.attach(net, models, mask.chosen(len(models)), samples)  # type: ignore[operator]

    def calibrate(self, logits: Sequence[Tensor], labels: Tensor) -> None:
        """Fit a temperature for each candidate to validation images: logits [n, C] of each, labels [n]."""
        fitted = [fit_temperature(each, labels) for each in logits]
        if self.mask.calibrated:
            self.mask.calibrate(fitted)
        if self.fits_targets:
            self.temperatures = fitted

    def on_epoch(self, epoch: int) -> None:
        """The cached logits and the temperature of this epoch."""
        super().on_epoch(epoch)
        self.loss.on_epoch(epoch, self.epochs)

    def forward(self, batch: Batch) -> Step:
        """The loss of one batch, and how many samples went to a teacher."""
        labels = batch.labels if self.reads_labels else None
        student, candidates, own, theirs = self._run(batch)
        weights = self.mask(student.detach(), candidates, labels)
        values, used = self.loss(student, mix(self._tempered(candidates), weights), labels), weights.sum(0)
        losses = {"distillation": (used * values).sum() / divisor(used.sum())}
        if self.loss.reads_features:
            between: Any = self.loss
            losses["features"] = between.compare(own, theirs, weights, batch).sum() / divisor(used.sum())
        loss = self.kd_weight * torch.stack(list(losses.values())).sum()
        if labels is not None and self.kd_weight < 1:
            losses["xe"] = cross_entropy(student, labels).mean()
            loss = loss + (1 - self.kd_weight) * losses["xe"]
        return make_step(loss, losses | self._routing(candidates, weights, labels))

    def _run(self, batch: Batch) -> tuple[Tensor, list[Tensor], list[Tensor], list[list[Tensor]]]:
        """Logits of the student and of all candidates; features of both where the loss compares them."""
        if self.reads_logits:
            return self.net(batch.images).float(), [*self.initial(batch), *self.teachers(batch)], [], []
        loss: Any = self.loss
        own, student = read_features(self.net, batch.images, loss.places[0])
        with torch.no_grad():
            models = enumerate([*self.initial.models, *self.teachers.models])
            read = [
                read_features(model, batch.images, loss.places[k]) if k in loss.used else ([], model(batch.images))
                for k, model in models
            ]
        return student, [logits for _, logits in read], own, [read[place][0] for place in loss.used]

    def _tempered(self, candidates: list[Tensor]) -> list[Tensor]:
        """Logits at each network's own temperature."""
        if self.temperatures is None:
            return candidates
        return [logits / temperature for logits, temperature in zip(candidates, self.temperatures, strict=True)]

    def _routing(self, candidates: list[Tensor], weights: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        logs = {"to_teacher": 100 * weights[1:].sum(0).mean()}
        if labels is not None:
            flips, taught = find_flips(candidates[0], candidates[1], labels), weights[1:].sum(0) > weights[0]
            sides = {"positive": flips.positive, "negative": flips.negative}
            logs |= flip_percentages(flips)
            logs |= {f"{side}_to_teacher": percentage(mask & taught) for side, mask in sides.items()}
        return logs


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The T in 0.05..20 at which softmax(logits / T) has the least cross entropy with the labels (Guo et al., 2017)."""
    logits, labels = logits.double(), labels.long()

    def loss(log_temperature: float) -> float:
        return float(F.cross_entropy(logits / np.exp(log_temperature), labels))

    with torch.no_grad():
        found = minimize_scalar(loss, bounds=(np.log(0.05), np.log(20)), method="bounded", options={"xatol": 1e-4})
    return float(np.exp(found.x))
