"""Settings of transfer, from one teacher or from several, and of its methods."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from recombine.core.builds import Builds, Node, load_target, parameters_of
from recombine.core.settings import read, schema_of
from recombine.data.checks import check as check_data
from recombine.data.settings import DatasetSettings, LoaderSettings
from recombine.engine.settings import MethodSettings, TrainingSettings
from recombine.models.checks import check_model
from recombine.models.settings import ModelSettings

__all__ = [
    *("METHOD", "MultiTeacherSettings", "TransferMethodSettings", "TransferSettings"),
    *("name_of", "same_network", "takes_one_teacher"),
]

Count = Annotated[int, Field(ge=1)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Network = str | ModelSettings
"""A name or a config node."""
EXAMPLE = ["resnet32", "resnet56"]


class TransferMethodSettings(MethodSettings):
    """A method of transfer."""

    many_teachers: ClassVar[bool] = False
    """As of the class."""

    name: str
    """How rows call it."""

    @property
    def learns_from_teachers(self) -> bool:
        """Whether it learns from teachers that stay as they are."""
        return False


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
    """not_negative: without samples that only the current student gets right. positive: only those it gets wrong and
    the teacher right."""
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
    late=("net", "teachers", "initial", "partner", "samples", "batch_size"),
)
"""What the field `method` must construct."""


class _TransferSettings(TrainingSettings):
    """What transfer from one and from several teachers share."""

    method: Annotated[Node, METHOD]
    """What is learned from whom."""
    student: ModelSettings
    """The network that learns."""
    dataset: DatasetSettings
    """The images."""
    loader: LoaderSettings = LoaderSettings()
    """The loader."""
    split: str = "test"
    """The images that are reported on."""
    fit_heads: bool = False
    """Networks with other classes than the data get a classifier fitted to the training images (linear probe)."""
    teacher_preprocessing: Literal["own", "student"] = "own"
    """own: each network sees images at its own size and crop. student: teachers at the student's, as in the paper."""
    lr_scaling: Literal["none", "linear"] = "linear"
    """linear: the learning rate times batch_size / 256. none: as it is."""
    lr_factor: NotNegative = 1.0
    """Times the learning rate that a method brings along: for experiments shorter than the paper's."""
    cache_teacher_logits: bool = True
    """Compute the logits of frozen networks once, where training images are not augmented or only mirrored."""
    cache_limit_gib: NotNegative = 4.0
    """Largest size of these logits, all frozen networks together; larger ones are computed in every step."""
    legacy_class_count: bool = False
    """Count one class too many among those that hold the top-X % of the flips, as the authors' code does."""
    variant: str | None = None
    """The form of the method, in the cells of rows where it is not the standard one."""

    def check(self, path: str) -> list[str]:
        """Absent files, and a method of one's own that lacks arguments."""
        return check_data(self.dataset, self.data_root, self.split) + _missing_arguments(self.method)


class TransferSettings(_TransferSettings):
    """Move what a trained teacher knows into a trained student that keeps what it knew."""

    teacher: ModelSettings
    """The network that teaches."""
    candidates: list[Network] | None = Field(None, min_length=1, examples=[EXAMPLE])
    """Rank these networks as teachers of the student, before any training, instead of training with one."""

    def check(self, path: str) -> list[str]:
        """Absent files and weights, networks that do not go together, candidates named twice."""
        problems = super().check(path)
        if self.candidates is not None:
            candidates = {f"candidate {name_of(node)}": node for node in self.candidates}
            problems += _repeated("candidates", self.candidates)
            return problems + _check_networks(self, {"student": self.student, **candidates})
        if self.student.model_dump() == self.teacher.model_dump():
            problems.append(same_network(self.student.name, self.teacher.name))
        return problems + _check_networks(self, {"student": self.student, "teacher": self.teacher})


class MultiTeacherSettings(_TransferSettings):
    """Move what several trained teachers know into one trained student."""

    teachers: list[Network] = Field(examples=[EXAMPLE])
    """The networks that teach, at least two."""
    combine: Literal["sequential", "parallel", "soup"] = "sequential"
    """sequential: one after the other. parallel: all at once. soup: mean weights of students with one teacher each."""
    order: Literal["ascending", "descending", "given"] = "ascending"
    """Of sequential stages, by the teachers' accuracy."""

    def check(self, path: str) -> list[str]:
        """Absent files and weights, networks that do not go together, methods that cannot combine teachers."""
        problems = super().check(path)
        problems += _check_combination(self.method, len(self.teachers) if self.combine == "parallel" else 1)
        if len(self.teachers) < 2:
            problems.append(f"teachers: at least two are needed, such as teachers=[{','.join(EXAMPLE)}]")
        problems += _repeated("teachers", self.teachers)
        if any(node == self.student.name for node in self.teachers):
            problems.append(same_network(self.student.name, self.student.name))
        teachers = {name_of(node): node for node in self.teachers}
        return problems + _check_networks(self, {"student": self.student, **teachers})


def name_of(node: Network) -> str:
    """The name of a network that is given by name or as a node."""
    return node if isinstance(node, str) else node.name


def same_network(student: str, teacher: str) -> str:
    """The message for a teacher that is its student."""
    return (
        f"teacher and student are the same network ({teacher} and {student}): nothing can be transferred; choose "
        f"another teacher, or method=self_dist, in which the student teaches itself"
    )


def _repeated(option: str, nodes: Sequence[Network]) -> list[str]:
    """Networks that a list holds more than once."""
    names = [name_of(node) for node in nodes]
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    return [f"{option}: {name} is named twice; name each network once" for name in twice]


def _check_networks(settings: _TransferSettings, networks: Mapping[str, Network]) -> list[str]:
    """What is wrong with the networks by role, and whether their numbers of classes differ, as far as names tell."""
    problems: list[str] = []
    counts: dict[str, int] = {}
    for role, node in networks.items():
        found = check_model(node, settings.weights_root, frozen=True, path=role)
        problems += [f"{role}: {text}" for text in found]
        if not found and (count := _count_classes(node, settings.weights_root)):
            counts[role] = count
    if len(set(counts.values())) > 1 and not settings.fit_heads:
        listed = ", ".join(f"{role} {count}" for role, count in counts.items())
        problems.append(
            f"the networks have different numbers of classes: {listed}; choose networks of the same "
            "classes, or let new classifiers be fitted to the data first with fit_heads=true"
        )
    return problems


def _count_classes(node: Network, weights_root: str) -> int | None:
    """Outputs of a trained network without building it; None where that cannot be told."""
    from recombine.models.libraries import library_classes
    from recombine.models.resolve import locate

    spec, _ = locate(node if isinstance(node, str) else node.model_dump(exclude_unset=True), Path(weights_root))
    return spec.classes or library_classes(spec.architecture)


def _check_combination(method: Node, teachers: int) -> list[str]:
    """What keeps a method from learning from frozen teachers, so many at once."""
    if METHOD.problems(method, "method"):
        return []
    name, declared = method.get("name"), schema_of(method["_target_"])
    if declared is not None and issubclass(declared, TransferMethodSettings):
        learns, many = read(declared, method).learns_from_teachers, declared.many_teachers
    else:
        made = load_target("method", method["_target_"])
        learns, many = "teachers" in (parameters_of(made) or {"teachers"}), getattr(made, "many_teachers", False)
    if not learns:
        return [
            f"method={name} learns from no frozen teachers, so several cannot be combined; choose one that does, such "
            "as method=kl_dp, or main_transfer.py"
        ]
    return [] if teachers == 1 or many else [takes_one_teacher(name, teachers)]


def _missing_arguments(method: Node) -> list[str]:
    """Arguments that the constructor of somebody's own method needs and that are not given."""
    target = method["_target_"]
    if schema_of(target) or METHOD.problems(method, "method"):
        return []
    return [
        f"method.{name}: a value is needed; give +method.{name}=..."
        for name, parameter in inspect.signature(load_target("method", target)).parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        and name not in {*METHOD.late, *method}
    ]


def takes_one_teacher(method: object, teachers: int) -> str:
    """The message for a method that cannot learn from so many teachers at once."""
    return (
        f"method={method} takes one teacher at a time, not {teachers}; method=kl_dp takes many, and combine=sequential "
        "gives one after the other"
    )
