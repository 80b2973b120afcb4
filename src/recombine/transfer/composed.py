"""Any mask with any loss: what to learn from whom, times how."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn import functional as F

from recombine.core.types import Batch, Step
from recombine.models import Model
from recombine.transfer.losses import cross_entropy
from recombine.transfer.masks import Mask, mix
from recombine.transfer.method import Transfer, make_step
from recombine.transfer.sample_selection import find_flips, flip_percentages, percentage
from recombine.transfer.teacher_cache import FrozenTeachers

__all__ = ["ComposedDistillation", "fit_temperature"]

Loss = Callable[[Tensor, Tensor, Tensor | None], Tensor]


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
        loss: Loss,
        kd_weight: float = 1.0,
        batchnorm: str = "adapt",
    ) -> None:
        """`kd_weight` is w; below 1, labels are read."""
        super().__init__(net, name=name, teachers=teachers, initial=initial, batchnorm=batchnorm)
        self.mask, self.loss, self.kd_weight = mask, loss, kd_weight
        self.reads_labels = mask.reads_labels or getattr(loss, "reads_labels", False) or kd_weight < 1

    @property
    def calibrated(self) -> bool:
        """Whether `calibrate` is to be called before training."""
        return self.mask.calibrated

    def calibrate(self, logits: Sequence[Tensor], labels: Tensor) -> None:
        """Fit a temperature for each candidate to validation images: logits [n, C] of each, labels [n]."""
        self.mask.calibrate([fit_temperature(each, labels) for each in logits])

    def forward(self, batch: Batch) -> Step:
        """The loss of one batch, and how many samples went to a teacher."""
        labels = batch.labels if self.reads_labels else None
        student = self.net(batch.images).float()
        candidates = [*self.initial(batch), *self.teachers(batch)]
        weights = self.mask(student.detach(), candidates, labels)
        values, used = self.loss(student, mix(candidates, weights), labels), weights.sum(0)
        losses = {"distillation": (used * values).sum() / used.sum().clamp(min=1)}
        loss = self.kd_weight * losses["distillation"]
        if labels is not None and self.kd_weight < 1:
            losses["xe"] = cross_entropy(student, labels).mean()
            loss = loss + (1 - self.kd_weight) * losses["xe"]
        logs = {**losses, "to_teacher": 100 * weights[1:].sum(0).mean()}
        if labels is not None:
            flips, taught = find_flips(candidates[0], candidates[1], labels), weights[1:].sum(0) > weights[0]
            sides = {"positive": flips.positive, "negative": flips.negative}
            logs |= flip_percentages(flips)
            logs |= {f"{side}_to_teacher": percentage(mask & taught) for side, mask in sides.items()}
        return make_step(loss, logs)


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The T in 0.05..20 at which softmax(logits / T) has the least cross entropy with the labels (Guo et al., 2017)."""
    logits, labels = logits.double(), labels.long()

    def loss(log_temperature: float) -> float:
        return float(F.cross_entropy(logits / np.exp(log_temperature), labels))

    with torch.no_grad():
        found = minimize_scalar(loss, bounds=(np.log(0.05), np.log(20)), method="bounded", options={"xatol": 1e-4})
    return float(np.exp(found.x))
