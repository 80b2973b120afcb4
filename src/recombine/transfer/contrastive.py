"""Distillation of features: cosine similarities within a batch (CD) and contrast with a memory (CRD).

Deviation: features are what enters the last classifier layer (`Model.features`). The authors take timm's networks
without classifier, which is the same but for distilled networks with two classifiers, whose two tokens they average
and of which the second is taken here; another layer would need a rule for every family of networks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recombine.core.distributed import average, gather_batch, gather_rows, own_rows, shared, world
from recombine.core.types import Batch, Step
from recombine.models import Model
from recombine.transfer.losses import cross_entropy, kl_divergence
from recombine.transfer.method import Transfer, make_step
from recombine.transfer.sample_selection import find_flips, flip_percentages
from recombine.transfer.teacher_cache import FrozenTeachers

__all__ = [
    "ContrastiveMemory",
    "ContrastiveSamples",
    "CosineDistillation",
    "RepresentationDistillation",
    "similarity_loss",
]


@dataclass(frozen=True)
class ContrastiveSamples:
    """The training samples: positions in their split (ascending) and labels, int64 [n] each."""

    index: Tensor
    labels: Tensor


def similarity_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """KL between the rows' softmax of the cosine-similarity matrices [B, B] of features [B, D], summed, 0-d."""
    student, teacher = (F.normalize(features, dim=1) for features in (student, teacher))
    return kl_divergence(student @ student.T, teacher @ teacher.T).sum()


class _FeatureDistillation(Transfer):
    """L = xe XE + kl KL + contrast L_con, with L_con defined by the subclass."""

    reads_logits = False

    def __init__(
        self,
        net: Model,
        teachers: FrozenTeachers,
        *,
        name: str,
        xe_weight: float,
        contrast_weight: float,
        kl_weight: float = 0.0,
        temperature: float = 1.0,
        train_teacher: bool = False,
        batchnorm: str = "adapt",
    ) -> None:
        """`temperature` is that of KL. `train_teacher`: as the authors' code, which leaves the teacher's backbone in
        training mode, so that its BatchNorm statistics drift and dropout is active; its weights stay.
        """
        super().__init__(net, name=name, teachers=teachers, batchnorm=batchnorm)
        self.weights, self.temperature = (xe_weight, kl_weight, contrast_weight), temperature
        self.train_teacher = train_teacher
        if train_teacher:
            self.frozen = ()  # its statistics belong into checkpoints

    def train(self, mode: bool = True) -> _FeatureDistillation:
        """Switch to training, with `train_teacher` the teacher too, all but its classifier."""
        super().train(mode)
        if mode and self.train_teacher:
            teacher = self.teachers.models[0].train()
            teacher.head.eval()
        return self

    def forward(self, batch: Batch) -> Step:
        """The weighted loss of one batch; the teacher runs live, as its features are needed."""
        student, logits = self.net.features_and_logits(batch.images)
        with torch.no_grad():
            teacher, target = self.teachers.models[0].features_and_logits(batch.images)
        xe, kl, contrast = self.weights
        with torch.autocast(student.device.type, enabled=False):  # 16 bits are too few for exp(similarity / 0.07)
            distance = self.contrast(student, teacher, batch)
        terms = {"xe": cross_entropy(logits, batch.labels).mean(), "contrast": distance}
        loss = xe * terms["xe"] + contrast * terms["contrast"]
        if kl:
            terms["kl"] = kl_divergence(logits, target, self.temperature).mean()
            loss = loss + kl * terms["kl"]
        return make_step(loss, terms | flip_percentages(find_flips(logits, target, batch.labels)))

    def contrast(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """The loss between features [B, D]."""
        raise TypeError(f"{type(self).__name__} defines no contrast")


class CosineDistillation(_FeatureDistillation):
    """Within a batch, features should be as similar to each other as the teacher's: cd."""

    def contrast(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """`similarity_loss` of the batch."""
        return similarity_loss(gather_batch(student), gather_batch(teacher))


class ContrastiveMemory(nn.Module):
    """Embeddings of all n training samples for both networks, and NCE against samples of other classes.

    Tian, Krishnan and Isola, Contrastive Representation Distillation, ICLR 2020, eq. 17 and 18 with the memory of
    their code. Deviation: negatives are drawn with replacement, which needs no list for each sample, and the memory
    starts at vectors of length 1, where theirs have it on average.
    """

    student: Tensor
    teacher: Tensor
    constants: Tensor
    """Normalisers of both directions, [2]; negative before the first batch."""
    order: Tensor
    start: Tensor
    sizes: Tensor
    rows: Tensor
    """Row of each dataset index in the memory; -1 where it has none."""

    def __init__(
        self, samples: ContrastiveSamples, dimensions: int, negatives: int, temperature: float, momentum: float
    ) -> None:
        super().__init__()
        self.negatives, self.temperature, self.momentum = negatives, temperature, momentum
        count = len(samples.index)
        for name in ("student", "teacher"):
            self.register_buffer(name, F.normalize(torch.randn(count, dimensions), dim=1))
        self.register_buffer("constants", torch.full((2,), -1.0))
        # samples sorted by class: those of other classes are all but one contiguous range of the order
        sizes = torch.bincount(samples.labels)
        self.register_buffer("order", samples.labels.argsort(stable=True), persistent=False)
        self.register_buffer("start", sizes.cumsum(0) - sizes, persistent=False)
        self.register_buffer("sizes", sizes, persistent=False)
        rows = torch.full((int(samples.index.max()) + 1,), -1, dtype=torch.int64)
        rows[samples.index] = torch.arange(count)
        self.register_buffer("rows", rows, persistent=False)

    def draw(self, labels: Tensor) -> Tensor:
        """Rows of random samples of other classes, int64 [B, negatives]."""
        others = (len(self.order) - self.sizes[labels])[:, None]
        drawn = shared(torch.rand(len(labels) * world(), self.negatives, device=labels.device))
        drawn = (own_rows(drawn) * others).long()
        return self.order[drawn + (drawn >= self.start[labels, None]) * self.sizes[labels, None]]

    def forward(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """NCE of both directions for unit embeddings [B, d], summed over negatives, of each sample [B]."""
        rows = self.rows[batch.index]
        contrasted = torch.cat([rows[:, None], self.draw(batch.labels)], dim=1)
        pairs = ((student, self.teacher), (teacher, self.student))
        losses = [self._nce(embedding, bank[contrasted], side) for side, (embedding, bank) in enumerate(pairs)]
        self._update(*gather_rows(rows, student.detach(), teacher.detach()))
        return losses[0] + losses[1]

    def _nce(self, embedding: Tensor, contrasted: Tensor, side: int) -> Tensor:
        scores = torch.exp(torch.einsum("bkd,bd->bk", contrasted, embedding) / self.temperature)
        samples, noise = len(self.order), self.negatives / len(self.order)
        # the normaliser is estimated once, on the first batch
        first = average(scores.mean() * samples)
        constant = torch.where(self.constants[side] < 0, first, self.constants[side])
        if self.training:
            self.constants[side] = constant
        likely = scores / constant
        real = torch.log(likely[:, 0] / (likely[:, 0] + noise + 1e-7))
        false = torch.log(noise / (likely[:, 1:] + noise + 1e-7)).sum(1)
        return -(real + false)

    @torch.no_grad()
    def _update(self, rows: Tensor, student: Tensor, teacher: Tensor) -> None:
        for bank, fresh in ((self.student, student), (self.teacher, teacher)):
            bank[rows] = F.normalize(torch.lerp(fresh, bank[rows], self.momentum), dim=1)


class RepresentationDistillation(_FeatureDistillation):
    """The same sample's embeddings should agree among those of other classes: crd."""

    def __init__(
        self,
        net: Model,
        teachers: FrozenTeachers,
        samples: ContrastiveSamples,
        *,
        dimensions: int = 128,
        negatives: int = 4096,
        nce_temperature: float = 0.07,
        nce_momentum: float = 0.5,
        **options: Any,
    ) -> None:
        """`dimensions` of the embeddings; their projections train with the student and are dropped afterwards."""
        super().__init__(net, teachers, **options)
        self.project_student = nn.Linear(net.width, dimensions)
        self.project_teacher = nn.Linear(teachers.models[0].width, dimensions)
        self.memory = ContrastiveMemory(samples, dimensions, negatives, nce_temperature, nce_momentum)

    def contrast(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """NCE against the memory."""
        embeddings = self.project_student(student), self.project_teacher(teacher)
        return self.memory(*(F.normalize(embedding, dim=1) for embedding in embeddings), batch).mean()
