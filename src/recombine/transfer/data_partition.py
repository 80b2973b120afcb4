"""Learning each sample from the right network: data partitioning, its ablations, and both directions at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from recombine.core.types import Batch, Step
from recombine.models import Model
from recombine.transfer.assignment import Flips, flips, most_confident, select, shares
from recombine.transfer.losses import cross_entropy, kl_divergence
from recombine.transfer.method import Transfer, share, step
from recombine.transfer.options import flag, number, one_of
from recombine.transfer.teacher_cache import FrozenTeachers

__all__ = ["BiDirectional", "DataPartition", "FlipPartition", "GatedPartition"]

FLIP_RULES = ("teacher_on_positive", "initial_on_negative", "average")


class DataPartition(Transfer):
    """Each sample from whichever frozen network is most sure of it: kl_dp, kl_dp_u, and many teachers at once.

    L = T^2 mean_i KL(winner(i) || student), where winner(i) of [initial student, teachers...] has the largest
    probability of the true class (supervised) or of any class (sections 3.4 and 8, parallel).
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
        """`initial_weight` multiplies the loss of samples that are kept from the initial student (gamma)."""
        super().__init__(net, name=name, teachers=teachers, initial=initial, batchnorm=batchnorm)
        flag("supervised", supervised)
        number("temperature", temperature, 1.0, above=0)
        if topk is not None:
            number("topk", topk, 100, least=1, whole=True)
        number("initial_weight", initial_weight, 1.0, least=0)
        self.reads_labels = supervised
        self.temperature, self.topk, self.initial_weight = temperature, topk, initial_weight

    def forward(self, batch: Batch) -> Step:
        """The loss of one batch, and how many samples went to a teacher."""
        labels = batch.labels if self.reads_labels else None
        student = self.net(batch.images)
        candidates = [*self.initial(batch), *self.teachers(batch)]
        return self.learnt(student, candidates, *self.target(student.detach(), candidates, labels), labels)

    def learnt(
        self, student: Tensor, candidates: list[Tensor], target: Tensor, to_teacher: Tensor, labels: Tensor | None
    ) -> Step:
        """The loss for logits to learn [B, C], of which those in `to_teacher` [B] come from a teacher."""
        values = kl_divergence(student, target, self.temperature, self.topk)
        if self.initial_weight != 1:
            values = torch.where(to_teacher, values, self.initial_weight * values)
        logs = {"to_teacher": share(to_teacher)}
        if labels is not None:
            logs |= _routed(flips(candidates[0], candidates[1], labels), to_teacher)
            logs |= _learnt(student.detach(), candidates[0], labels)
        return step(values.mean(), logs)

    def target(self, student: Tensor, candidates: list[Tensor], labels: Tensor | None) -> tuple[Tensor, Tensor]:
        """Logits to learn [B, C], and which samples come from a teacher, bool [B]."""
        winner = most_confident(candidates, labels)
        return select(candidates, winner), winner > 0


class FlipPartition(DataPartition):
    """Partition by who is right, with respect to the current student (ablations of section 3.6)."""

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
        one_of("rule", rule, FLIP_RULES)
        self.rule = rule

    def target(self, student: Tensor, candidates: list[Tensor], labels: Tensor | None) -> tuple[Tensor, Tensor]:
        """Logits to learn [B, C], and which samples come from the teacher, bool [B]."""
        initial, teacher = candidates
        flip = flips(student, teacher, labels)
        if self.rule == "average":
            neutral = torch.where(flip.negative[:, None], initial, (teacher + student) / 2)
            return torch.where(flip.positive[:, None], teacher, neutral), flip.positive
        to_teacher = flip.positive if self.rule == "teacher_on_positive" else ~flip.negative
        return select(candidates, to_teacher.long()), to_teacher


class GatedPartition(DataPartition):
    """Partition by a gate on features: dp_adaptive (section 3.6), which the authors tried and dropped.

    Features of the student in training, the initial student and the teacher are embedded in `dimensions` numbers each,
    e_s, e_0 and e_t; the teacher teaches where w (e_t e_s) > w (e_0 e_s). It was meant to be learned, but the choice
    passes no gradient in the authors' code, so that w and the embeddings stay as they were drawn; so they do here.
    Deviation: the loss is KL alone, as of the other partitions; what share of cross entropy they took is not known.
    """

    many_teachers = False
    reads_logits = False

    def __init__(
        self, net: Model, teachers: FrozenTeachers, initial: FrozenTeachers, *, dimensions: int = 128, **options: Any
    ) -> None:
        """`options` are those of `DataPartition`; with `supervised` the labels are only read for what is logged."""
        super().__init__(net, teachers, initial, **options)
        number("dimensions", dimensions, 128, least=1, whole=True)
        for name, width in (("own", net.width), ("initial", net.width), ("teacher", teachers.models[0].width)):
            self.register_buffer(f"embed_{name}", torch.randn(width, dimensions) / width**0.5)
        self.register_buffer("gate", torch.randn(dimensions))

    def forward(self, batch: Batch) -> Step:
        """The loss of one batch; frozen networks run live, as their features are needed."""
        features, student = self.net.features_and_logits(batch.images)
        with torch.no_grad():
            kept, taught = (
                frozen.models[0].features_and_logits(batch.images) for frozen in (self.initial, self.teachers)
            )
            own = (features.detach() @ self.embed_own) * self.gate
            scores = [(own * (kept[0] @ self.embed_initial)).sum(1), (own * (taught[0] @ self.embed_teacher)).sum(1)]
            to_teacher = scores[1] > scores[0]
        candidates = [kept[1], taught[1]]
        labels = batch.labels if self.reads_labels else None
        return self.learnt(student, candidates, select(candidates, to_teacher.long()), to_teacher, labels)


class BiDirectional(Transfer):
    """Both networks train and each teaches what it is surer of: bi_kd (section 13, Bi-KD, TMLR 2025).

    Deviation: the authors keep each network's best epoch, and here the last one's is kept, as of every other method
    (accuracy_best is in the row). Their variant of three networks, in which the surest teaches the two others, is left
    out: every run here has one student, which learns from teachers, and the pair already shows what both sides gain.

    L = XE(teacher) + XE(student) + mean_i [ m_i KL(teacher || student) + (1 - m_i) KL(student || teacher) ], with
    m_i = 1 where the teacher's probability of the true class is larger. Gradients flow through both sides of each KL.
    """

    def __init__(
        self, net: Model, partner: Model, *, name: str, detach: bool = False, batchnorm: str = "adapt"
    ) -> None:
        """`detach` stops the gradient into the side that teaches."""
        super().__init__(net, name=name, batchnorm=batchnorm)
        flag("detach", detach)
        self.partner, self.detach = partner, detach

    def forward(self, batch: Batch) -> Step:
        """The joint loss of one batch."""
        student, teacher = self.net(batch.images), self.partner(batch.images)
        to_student = most_confident([student.detach(), teacher.detach()], batch.labels) == 1
        taught, teaching = (logits.detach() if self.detach else logits for logits in (student, teacher))
        kl = torch.where(to_student, kl_divergence(student, teaching), kl_divergence(teacher, taught)).mean()
        xe = cross_entropy(student, batch.labels).mean() + cross_entropy(teacher, batch.labels).mean()
        logs = {"xe": xe, "kl": kl, "to_teacher": share(to_student)}
        return step(xe + kl, logs | _routed(flips(student, teacher, batch.labels), to_student))


def _routed(flip: Flips, to_teacher: Tensor) -> dict[str, Tensor]:
    # as shares of the batch and not of its few flips, so that means over batches stay right
    return {
        **shares(flip),
        "positive_to_teacher": share(flip.positive & to_teacher),
        "negative_to_teacher": share(flip.negative & to_teacher),
    }


def _learnt(student: Tensor, initial: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """What the student in training gets right that the initial one does not on the same views, and what it lost."""
    change = flips(initial, student, labels)
    gain, loss = share(change.positive), share(change.negative)
    return {"knowledge_gain": gain, "knowledge_loss": loss, "transfer_delta": gain - loss}
