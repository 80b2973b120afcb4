"""Settings of the methods of transfer."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from recombine.core.builds import Builds, Node, load_target, parameters_of
from recombine.core.settings import read, schema_of
from recombine.engine.settings import MethodSettings

__all__ = [
    *("METHOD", "TrainedMethodSettings", "TransferMethodSettings", "check_combination", "declared_settings"),
    "takes_one_teacher",
]

Count = Annotated[int, Field(ge=1)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class TransferMethodSettings(MethodSettings):
    """A method of transfer."""

    many_teachers: ClassVar[bool] = False
    """As of the class."""

    name: str
    """Its name in rows."""

    @property
    def learns_from_teachers(self) -> bool:
        """Whether it learns from teachers that stay as they are."""
        return False

    @property
    def calibrated(self) -> bool:
        """Whether something is fitted to validation images before training."""
        return False

    def check_teachers(self, count: int) -> list[str]:
        """What does not go with so many teachers at once."""
        return []


class EnsembleSettings(TransferMethodSettings, target="recombine.transfer.method.Ensemble"):
    """No training: the more confident of the initial student and the teacher predicts."""


class TrainedMethodSettings(TransferMethodSettings):
    """A method that trains the student."""

    batchnorm: Literal["adapt", "keep"] = "adapt"
    """adapt: running statistics follow the data. keep: they stay as they are."""


class DistillationSettings(TrainedMethodSettings, target="recombine.transfer.distillation.Distillation"):
    """KL to the teacher and cross entropy on the labels."""

    kl_weight: Fraction = Field(examples=[0.5])
    """Weight of KL in the loss; the rest is cross entropy."""
    temperature: Positive = 1.0
    """Temperature of KL."""
    topk: Count | None = Field(None, examples=[100])
    """Only the teacher's k largest logits enter KL; null: all."""
    kl_samples: Literal["all", "not_negative", "positive"] = "all"
    """not_negative: without those that the current student alone gets right. positive: those the teacher alone does."""
    label_smoothing: Fraction = 0.0
    """Part of the target spread over all classes."""
    xe_on_probabilities: bool = False
    """Cross entropy of softmax probabilities instead of logits, as behind the published XE-KL numbers."""

    @property
    def learns_from_teachers(self) -> bool:
        """Not from labels alone."""
        return self.kl_weight > 0


class MomentumDistillationSettings(DistillationSettings, target="recombine.transfer.distillation.MomentumDistillation"):
    """Distillation whose result is a slow average of the trained weights."""

    decay: Annotated[float, Field(ge=0, lt=1)] = 0.9999
    """Of the slow weights."""
    every: Positive = 2
    """Steps between updates of the slow weights, at batch size 256."""
    reset_fast_on_eval: bool = False
    """Set the trained weights to the slow ones at each evaluation, as the authors' code does."""
    start_after_first_step: bool = False
    """The slow weights start after the first step, as in the authors' code, instead of at the initial student."""


class SelfDistillationSettings(TrainedMethodSettings, target="recombine.transfer.distillation.SelfDistillation"):
    """The initial student teaches on every sample."""

    temperature: Positive = 1.0
    """Temperature of KL."""


class DataPartitionSettings(TrainedMethodSettings, target="recombine.transfer.data_partition.DataPartition"):
    """Each sample from whichever of teacher and initial student is more confident."""

    many_teachers: ClassVar[bool] = True

    supervised: bool = True
    """true: confident of the label. false: confident of any class; labels are never read."""
    temperature: Positive = 1.0
    """Temperature of KL."""
    topk: Count | None = Field(None, examples=[100])
    """Only the target's k largest logits enter KL; null: all."""
    initial_weight: NotNegative = 1.0
    """Weight of the loss on samples that are learned from the initial student (gamma)."""

    @property
    def learns_from_teachers(self) -> bool:
        """Always."""
        return True


class FlipPartitionSettings(DataPartitionSettings, target="recombine.transfer.data_partition.FlipPartition"):
    """Each sample from teacher or initial student, by which of teacher and current student is right."""

    many_teachers: ClassVar[bool] = False

    rule: Literal["teacher_on_positive", "initial_on_negative", "average"]
    """average: the mean of teacher and current student where both are right or both are wrong."""
    supervised: Literal[True] = True
    """Flips are counted with labels."""


class GatedPartitionSettings(DataPartitionSettings, target="recombine.transfer.data_partition.GatedPartition"):
    """Each sample from teacher or initial student, by a gate on features."""

    many_teachers: ClassVar[bool] = False

    dimensions: Count = 128
    """Of the embeddings."""


class BiDirectionalSettings(TrainedMethodSettings, target="recombine.transfer.data_partition.BiDirectional"):
    """Both networks train and teach each other."""

    detach: bool = False
    """Stop the gradient into the side that teaches."""


class FeatureDistillationSettings(TrainedMethodSettings):
    """Distillation of features."""

    xe_weight: NotNegative = Field(examples=[1.0])
    """Weight of cross entropy."""
    contrast_weight: NotNegative = Field(examples=[1.0])
    """Weight of the loss between features."""
    kl_weight: NotNegative = 0.0
    """Weight of KL."""
    temperature: Positive = 1.0
    """Temperature of KL."""
    train_teacher: bool = False
    """Leave the teacher's backbone in training mode, as the authors' code does."""

    @property
    def learns_from_teachers(self) -> bool:
        """Always."""
        return True


class CosineDistillationSettings(
    FeatureDistillationSettings, target="recombine.transfer.contrastive.CosineDistillation"
):
    """Cosine similarities of features within a batch."""


class RepresentationDistillationSettings(
    FeatureDistillationSettings, target="recombine.transfer.contrastive.RepresentationDistillation"
):
    """Contrast of features with a memory of all samples."""

    dimensions: Count = 128
    """Of the embeddings."""
    negatives: Count = 4096
    """Samples of other classes per sample."""
    nce_temperature: Positive = 0.07
    """Temperature of the contrast."""
    nce_momentum: Fraction = 0.5
    """Of the memory."""


METHOD = Builds(
    "a transfer method",
    "method=kl_dp",
    TransferMethodSettings,
    base="recombine.transfer.method.Transfer",
    late=("net", "teachers", "initial", "partner", "samples", "batch_size", "epochs"),
)
"""What the field `method` must construct."""


def declared_settings(method: Node) -> TransferMethodSettings | None:
    """The settings of a method; None where they are wrong, or where the method is not of this package."""
    if METHOD.problems(method, "method"):
        return None
    declared = schema_of(method["_target_"])
    if declared is None or not issubclass(declared, TransferMethodSettings):
        return None
    return read(declared, method)


def check_combination(method: Node, teachers: int) -> list[str]:
    """What keeps a method from learning from so many frozen teachers at once."""
    if METHOD.problems(method, "method"):
        return []
    name, settings = method.get("name"), declared_settings(method)
    if settings is not None:
        learns, many = settings.learns_from_teachers, settings.many_teachers
    else:
        made = load_target("method", method["_target_"])
        learns, many = "teachers" in (parameters_of(made) or {"teachers"}), getattr(made, "many_teachers", False)
    if not learns:
        return [
            f"method={name} learns from no frozen teachers, so several cannot be combined; choose one that does, such "
            "as method=kl_dp, or main_transfer.py"
        ]
    return [] if teachers == 1 or many else [takes_one_teacher(name, teachers)]


def takes_one_teacher(method: object, teachers: int) -> str:
    """The message for a method that cannot learn from so many teachers at once."""
    return (
        f"method={method} takes one teacher at a time, not {teachers}; method=kl_dp takes many, and combine=sequential "
        "gives one after the other"
    )
