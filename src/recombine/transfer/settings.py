"""Settings of transfer, from one teacher or from several."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from recombine.core.builds import Node
from recombine.data.checks import check as check_data
from recombine.data.checks import check_search_split
from recombine.data.settings import DatasetSettings, LoaderSettings
from recombine.engine.settings import TrainingSettings
from recombine.models.checks import check_model
from recombine.models.settings import ModelSettings, Network, name_of, named_twice
from recombine.transfer.composed_settings import ComposedSettings
from recombine.transfer.method_settings import METHOD, check_combination, declared_settings

__all__ = ["ComposedSettings", "MultiTeacherSettings", "TransferSettings", "same_network"]

NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
EXAMPLE = ["resnet32", "resnet56"]


class _TransferSettings(TrainingSettings):
    """Settings of transfer from one and from several teachers alike."""

    method: Annotated[Node, METHOD]
    """What is learned from whom."""
    student: ModelSettings
    """The network that learns."""
    dataset: DatasetSettings
    """The images."""
    loader: LoaderSettings = LoaderSettings()
    """The loader."""
    split: str | None = "test"
    """The images that are reported on, read once, at the end; null: none, where all images are without labels."""
    controls: list[Literal["xe", "self_dist"]] = ["xe", "self_dist"]
    """What the gain is held against: the same training without a teacher, from labels or from the initial student."""
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
    """The form of the method, in the cells of rows where it is not the standard one: method=paper/... sets it."""

    def check_method(self, teachers: int) -> list[str]:
        """What the method needs and does not get, with so many teachers at once."""
        method = declared_settings(self.method)
        if method is None:
            return []
        fits = self.check_validation(f"method={method.name} is calibrated") if method.calibrated else []
        return method.check_teachers(teachers) + fits

    def check_search(self) -> list[str]:
        """A split that a search must not choose by."""
        return check_search_split(self.split)

    def check_validation(self, what: str) -> list[str]:
        """No choice is made on test images: what is wrong without validation images."""
        return [] if self.dataset.val_fraction else [f"{what} on validation images; dataset.val_fraction=0.1 has some"]


class TransferSettings(_TransferSettings):
    """Transfer what a trained teacher knows to a trained student that keeps its own knowledge."""

    teacher: ModelSettings
    """The network that teaches."""
    candidates: list[Network] | None = Field(None, min_length=1, examples=[EXAMPLE])
    """Rank these networks as teachers of the student on validation images, before any training, instead of training."""

    def check(self, path: str) -> list[str]:
        """Absent files and weights, networks that do not go together, candidates named twice."""
        problems = check_data(self.dataset, self.data_root, self.split)
        if self.candidates is not None:
            problems += self.check_validation("candidates are ranked")
            candidates = {f"candidate {name_of(node)}": node for node in self.candidates}
            problems += named_twice("candidates", self.candidates)
            return problems + _check_networks(self, {"student": self.student, **candidates})
        if self.student.model_dump() == self.teacher.model_dump():
            problems.append(same_network(self.student.name, self.teacher.name))
        problems += self.check_method(1)
        return problems + _check_networks(self, {"student": self.student, "teacher": self.teacher})

    def check_search(self) -> list[str]:
        """A ranking, which has nothing to maximise, or a split that a search must not choose by."""
        if self.candidates is not None:
            return ["candidates are ranked without training, so that a search has no objective; leave sweeper out"]
        return super().check_search()


class MultiTeacherSettings(_TransferSettings):
    """Transfer what several trained teachers know to one trained student."""

    teachers: list[Network] = Field(examples=[EXAMPLE])
    """The networks that teach, at least two."""
    combine: Literal["sequential", "parallel", "soup"] = "sequential"
    """sequential: one after the other. parallel: all at once. soup: mean weights of students with one teacher each."""
    order: Literal["ascending", "descending", "given"] = "ascending"
    """Of sequential stages, by the teachers' accuracy on validation images."""

    def check(self, path: str) -> list[str]:
        """Absent files and weights, networks that do not go together, methods that cannot combine teachers."""
        problems = check_data(self.dataset, self.data_root, self.split)
        at_once = len(self.teachers) if self.combine == "parallel" else 1
        problems += check_combination(self.method, at_once) or self.check_method(at_once)
        if self.combine == "sequential" and self.order != "given":
            problems += self.check_validation("the teachers are ordered by their accuracy (order=given orders nothing)")
        if len(self.teachers) < 2:
            problems.append(f"teachers: at least two are needed, such as teachers=[{','.join(EXAMPLE)}]")
        problems += named_twice("teachers", self.teachers)
        if any(node == self.student.name for node in self.teachers):
            problems.append(same_network(self.student.name, self.student.name))
        teachers = {name_of(node): node for node in self.teachers}
        return problems + _check_networks(self, {"student": self.student, **teachers})


def same_network(student: str, teacher: str) -> str:
    """The message for a teacher that is its student."""
    return (
        f"teacher and student are the same network ({teacher} and {student}): nothing can be transferred; choose "
        f"another teacher, or method=self_dist, in which the student teaches itself"
    )


def _check_networks(settings: _TransferSettings, networks: Mapping[str, Network]) -> list[str]:
    """What is wrong with the networks by role; other numbers of classes as far as known without building them."""
    problems: list[str] = []
    counts: dict[str, int] = {}
    for role, node in networks.items():
        found = check_model(node, settings.weights_root, frozen=True, path=role)
        problems += [f"{role}: {text}" for text in found]
        if not found and (count := _count_classes(node, settings.weights_root)):
            counts[role] = count
    if settings.dataset.classes and settings.dataset.class_subset is None and counts:
        counts["dataset.classes"] = settings.dataset.classes
    if len(set(counts.values())) > 1 and not settings.fit_heads:
        numbers = ", ".join(f"{role} {count}" for role, count in counts.items())
        problems.append(
            f"different numbers of classes: {numbers}; choose networks of the same "
            "classes, or let new classifiers be fitted to the data first with fit_heads=true"
        )
    return problems


def _count_classes(node: Network, weights_root: str) -> int | None:
    """Outputs of a trained network without building it; None if unknown."""
    from recombine.models.libraries import library_classes
    from recombine.models.resolve import locate

    spec, _ = locate(node if isinstance(node, str) else node.model_dump(exclude_unset=True), Path(weights_root))
    return spec.classes or library_classes(spec.architecture)
