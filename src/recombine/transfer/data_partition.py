"""Learning each sample from the right network: data partitioning, its ablations, and both directions at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from recombine.core.types import Batch, Step
from recombine.models import Model
from recombine.transfer.losses import cross_entropy, kl_divergence
from recombine.transfer.method import Transfer, make_step
from recombine.transfer.sample_selection import (
    Flips,
    find_flips,
    flip_percentages,
    most_confident,
    percentage,
    select_logits,
)
from recombine.transfer.teacher_cache import FrozenTeachers

__all__ = ["BiDirectional", "DataPartition", "FlipPartition", "GatedPartition"]


class DataPartition(Transfer):
    """Each sample from whichever frozen network is most confident: kl_dp, kl_dp_u, and many teachers at once.

    L = T^2 mean_i KL(winner(i) || student), where winner(i) of [initial student, teachers...] has the largest
    probability of the true class (supervised) or of any class.

    Example:
        student, teacher = recombine.models.build("resnet20"), recombine.models.build("resnet56")
        initial = FrozenTeachers([deepcopy(student)])
        method = DataPartition(student, FrozenTeachers([teacher]), initial, name="kl_dp").train()
        method(batch).loss.backward()
    """

    many_teachers = True

    def __init__(
        self,
        net: Model,
        teachers: FrozenTeachers,
        initial: FrozenTeachers,
        *,
        name: str,
        supervised: bool = True,
        temperature: float = 1.0,
        topk: int | None = None,
        initial_weight: float = 1.0,
        batchnorm: str = "adapt",
    ) -> None:
        """`initial_weight` multiplies the loss of samples that are learned from the initial student (gamma)."""
        super().__init__(net, name=name, teachers=teachers, initial=initial, batchnorm=batchnorm)
        self.reads_labels = supervised
        self.temperature, self.topk, self.initial_weight = temperature, topk, initial_weight

    def forward(self, batch: Batch) -> Step:
        """The loss of one batch, and how many samples went to a teacher."""
        labels = batch.labels if self.reads_labels else None
        student = self.net(batch.images)
        candidates = [*self.initial(batch), *self.teachers(batch)]
        target, to_teacher = self.target(student.detach(), candidates, labels)
        return self.compute_step(student, candidates, target, to_teacher, labels)

    def compute_step(
        self, student: Tensor, candidates: list[Tensor], target: Tensor, to_teacher: Tensor, labels: Tensor | None
    ) -> Step:
        """The loss with target logits [B, C], of which those in `to_teacher` [B] come from a teacher."""
        values = kl_divergence(student, target, self.temperature, self.topk)
        if self.initial_weight != 1:
            values = torch.where(to_teacher, values, self.initial_weight * values)
        logs = {"to_teacher": percentage(to_teacher)}
        if labels is not None:
            logs |= _routing(find_flips(candidates[0], candidates[1], labels), to_teacher)
            logs |= _changes(student.detach(), candidates[0], labels)
        return make_step(values.mean(), logs)

    def target(self, student: Tensor, candidates: list[Tensor], labels: Tensor | None) -> tuple[Tensor, Tensor]:
        """Target logits [B, C], and which samples come from a teacher, bool [B]."""
        winner = most_confident(candidates, labels)
        return select_logits(candidates, winner), winner > 0


class FlipPartition(DataPartition):
    """Partition by who is right, with respect to the current student: ablations in the authors' code."""

    many_teachers = False

    def __init__(
        self,
        net: Model,
        teachers: FrozenTeachers,
        initial: FrozenTeachers,
        *,
        rule: str,
        **options: Any,
    ) -> None:
        """`rule`: teacher_on_positive (flip-st), initial_on_negative (flip-t) or average (flip-avg).

        average: the teacher on positive flips, the initial student on negative ones, elsewhere the mean of the
        teacher's and the current student's logits. `options` are those of `DataPartition`.
        """
        super().__init__(net, teachers, initial, **options)
        self.rule = rule

    def target(self, student: Tensor, candidates: list[Tensor], labels: Tensor | None) -> tuple[Tensor, Tensor]:
        """Target logits [B, C], and which samples come from the teacher, bool [B]."""
        initial, teacher = candidates
        assert labels is not None, "flips are counted with labels"
        flips = find_flips(student, teacher, labels)
        if self.rule == "average":
            neutral = torch.where(flips.negative[:, None], initial, (teacher + student) / 2)
            return torch.where(flips.positive[:, None], teacher, neutral), flips.positive
        to_teacher = flips.positive if self.rule == "teacher_on_positive" else ~flips.negative
        return select_logits(candidates, to_teacher.long()), to_teacher


class GatedPartition(DataPartition):
    """Partition by a gate on features: dp_adaptive, which the authors tried and dropped.

    Features of the student in training, the initial student and the teacher are embedded in `dimensions` numbers each,
    e_s, e_0 and e_t; the teacher teaches where w (e_t e_s) > w (e_0 e_s). It was meant to be learned, but the choice
    passes no gradient in the authors' code: w and the embeddings stay as they were initialised, and so they do here.
    Deviation: the loss is KL alone, as in the other partitions; what weight they gave to cross entropy is not known.
    """

    many_teachers = False
    reads_logits = False
    embed_student: Tensor
    embed_initial: Tensor
    embed_teacher: Tensor
    gate: Tensor

    def __init__(
        self, net: Model, teachers: FrozenTeachers, initial: FrozenTeachers, *, dimensions: int = 128, **options: Any
    ) -> None:
        """`options` are those of `DataPartition`; with `supervised` the labels are only read for what is logged."""
        super().__init__(net, teachers, initial, **options)
        for role, model in (("student", net), ("initial", net), ("teacher", teachers.models[0])):
            self.register_buffer(f"embed_{role}", torch.randn(model.width, dimensions) / model.width**0.5)
        self.register_buffer("gate", torch.randn(dimensions))

    def forward(self, batch: Batch) -> Step:
        """The loss of one batch; frozen networks run live, as their features are needed."""
        features, student = self.net.features_and_logits(batch.images)
        with torch.no_grad():
            initial_features, initial = self.initial.models[0].features_and_logits(batch.images)
            teacher_features, teacher = self.teachers.models[0].features_and_logits(batch.images)
            embedding = (features.detach() @ self.embed_student) * self.gate
            initial_score = (embedding * (initial_features @ self.embed_initial)).sum(1)
            teacher_score = (embedding * (teacher_features @ self.embed_teacher)).sum(1)
            to_teacher = teacher_score > initial_score
        candidates = [initial, teacher]
        labels = batch.labels if self.reads_labels else None
        return self.compute_step(student, candidates, select_logits(candidates, to_teacher.long()), to_teacher, labels)


class BiDirectional(Transfer):
    """Both networks train and each teaches what it is more confident of: bi_kd ("Bi-KD", TMLR 2025).

    Deviation: the authors keep each network's best epoch; here the last one is kept, as in every other method (the row
    has val_accuracy_best). Their variant with three networks, of which the most confident one teaches the two others,
    is left out: every run here has one student, and the pair already shows what both sides gain.

    L = XE(teacher) + XE(student) + mean_i [ m_i KL(teacher || student) + (1 - m_i) KL(student || teacher) ], with
    m_i = 1 where the teacher's probability of the true class is larger. Gradients flow through both sides of each KL.
    """

    def __init__(
        self, net: Model, partner: Model, *, name: str, detach: bool = False, batchnorm: str = "adapt"
    ) -> None:
        """`detach` stops the gradient into the side that teaches."""
        super().__init__(net, name=name, batchnorm=batchnorm)
        self.partner, self.detach = partner, detach

    def forward(self, batch: Batch) -> Step:
        """The joint loss of one batch."""
        student, teacher = self.net(batch.images), self.partner(batch.images)
        to_student = most_confident([student.detach(), teacher.detach()], batch.labels) == 1
        student_target, teacher_target = (logits.detach() if self.detach else logits for logits in (teacher, student))
        kl = torch.where(
            to_student, kl_divergence(student, student_target), kl_divergence(teacher, teacher_target)
        ).mean()
        xe = cross_entropy(student, batch.labels).mean() + cross_entropy(teacher, batch.labels).mean()
        logs = {"xe": xe, "kl": kl, "to_teacher": percentage(to_student)}
        return make_step(xe + kl, logs | _routing(find_flips(student, teacher, batch.labels), to_student))


def _routing(flips: Flips, to_teacher: Tensor) -> dict[str, Tensor]:
    # in percent of the batch and not of its few flips, so that means over batches stay right
    return {
        **flip_percentages(flips),
        "positive_to_teacher": percentage(flips.positive & to_teacher),
        "negative_to_teacher": percentage(flips.negative & to_teacher),
    }


def _changes(student: Tensor, initial: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """What the student in training gets right that the initial one does not on the same images, and what it lost."""
    gain, loss = (percentage(side) for side in find_flips(initial, student, labels))
    return {"knowledge_gain": gain, "knowledge_loss": loss, "transfer_delta": gain - loss}
