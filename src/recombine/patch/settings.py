"""Settings of Delta-Patching: the run, its tasks, and PAINT. No torch here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from recombine.core.builds import Builds, Node
from recombine.core.errors import ConfigError
from recombine.core.settings import schema_of
from recombine.data import registry
from recombine.data.checks import check as check_data
from recombine.data.checks import check_node
from recombine.data.settings import DatasetSettings, LoaderSettings
from recombine.engine.settings import TrainingSettings
from recombine.models.checks import check_model
from recombine.models.serialization import kind_of
from recombine.models.settings import ModelSettings
from recombine.patch.end_to_end.settings import RegularizerSettings
from recombine.patch.method_settings import METHOD, PatchMethodSettings
from recombine.patch.names import name_problem

__all__ = ["ALPHAS", "Paint", "PatchSettings", "TaskOverlay", "as_list", "is_paint", "task_nodes"]

UNTRAINED = ("scratch", "zero_shot")
"""Protocols without a trained base."""
DENSE = ("segmentation", "detection")
"""Protocols with a patch in the encoder of a network with heads on its maps."""
END_TO_END = ("scratch", "end_to_end", "zero_shot")
"""Protocols in which network and patch train together."""
HELD_OUT = 0.1
"""Fraction of a task's training images on which PAINT's interpolation weight is chosen, as in its authors' code."""
ALPHAS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""The interpolation weights that PAINT tries by default."""
DEFAULT_TASKS: list[str | Node] = [
    {"name": "low_digits", "dataset": "digits", "class_subset": [0, 1, 2, 3, 4]},
    {"name": "high_digits", "dataset": "digits", "class_subset": [5, 6, 7, 8, 9]},
]
"""These need no download."""
Fraction = Annotated[float, Field(ge=0, le=1)]
Routing = Literal["confidence", "features"]


class Paint(PatchMethodSettings):
    """PAINT (Ilharco et al. 2022): fine-tune all weights, then interpolate between them and the original ones.

    `select=fixed` with `alpha=1` is fine-tuning.
    """

    alphas: Annotated[list[Fraction], Field(min_length=1, examples=[[0, 0.5, 1]])] = list(ALPHAS)
    """Interpolation weights to choose from: 0 is the original network, 1 the fine-tuned one."""
    select: Literal["harmonic_mean", "mean", "fixed"] = "harmonic_mean"
    """Choose by this mean of the accuracies on held-out images, or take `alpha`."""
    alpha: Fraction = 1.0
    """The interpolation weight of select=fixed."""
    statistics: Literal["interpolated", "recalibrated"] = "interpolated"
    """BatchNorm statistics: interpolated like the weights (the paper's), or recalibrated on images of the task."""


class TaskOverlay(DatasetSettings):
    """Settings laid over the dataset node of every task."""

    name: str = ""
    """Given by each task."""
    val_fraction: Literal["auto"] | Annotated[float, Field(ge=0, lt=1)] = "auto"  # type: ignore[assignment]
    """auto: 0.1 where the method chooses by held-out images, else 0."""


class PatchSettings(TrainingSettings):
    """Can a frozen network learn new tasks through a small removable patch?"""

    model: ModelSettings
    """The base network."""
    dataset: DatasetSettings
    """The data of the base network."""
    loader: LoaderSettings = LoaderSettings()
    """The loader."""
    method: Annotated[Node, METHOD]
    """How a network learns the tasks."""
    tasks: str | list[str | Node] = Field(DEFAULT_TASKS, examples=[["mnist", "usps"]])
    """Datasets by name, or nodes such as {name: cars_half, dataset: stanford_cars, fraction: 0.5}."""
    task: TaskOverlay = TaskOverlay()
    """Laid over the dataset node of every task."""
    protocol: Literal[
        "single", "joint", "sequential", "end_to_end", "scratch", "zero_shot", "segmentation", "detection"
    ] = "single"
    """single: each task alone. joint: one patch and one classifier for all. sequential: one after the other, told the
    task of each image. end_to_end: the base trains with the patch, one task each. scratch: the same from random
    weights. zero_shot: the same on `dataset`, measured on each task, which has the same classes. segmentation,
    detection: the patch in the frozen backbone of a network for pixels or objects, whose heads train, one task each."""
    regularizer: Annotated[
        Node,
        Builds(
            "a regularizer",
            "regularizer=none",
            RegularizerSettings,
            base="recombine.patch.end_to_end.method.EndToEnd",
            late=("net", "base_lr_scale"),
        ),
    ]
    """What is added to the cross entropy where the base trains too: protocols end_to_end, scratch and zero_shot."""
    base_lr_scale: Annotated[float, Field(ge=0, examples=[0.1])] = 1.0
    """Learning rate of a base that trains over that of everything new."""
    adaptation: Literal["none", "adda", "target_only"] = "none"
    """Of protocol=zero_shot. adda: the encoder then learns from unlabelled images of the task (Tzeng et al. 2017).
    target_only: the task's own labels instead of the source's, the bound."""
    patch_weights: str | None = None
    """A patch file that training starts from: of this network, method and task; null: new weights."""
    choice_split: str = "train"
    """Split of the base's data on which held-out choices measure the base: 5,000 of its images."""
    augment_views: Annotated[int, Field(ge=1, examples=[8])] | None = None
    """Patches see so many fixed augmented views of each image, one an epoch, in turn; null: always new ones."""
    feature_cache_gib: Annotated[float, Field(ge=0)] = 4.0
    """Size up to which values before the first patched place are cached, where images are not augmented anew."""
    routing: Routing | list[Routing] | None = Field([], examples=[["confidence", "features"]])
    """Also find the task of each image without its id; sequential protocol, patches only."""

    def check(self, path: str) -> list[str]:
        """Absent data and weights, tasks that cannot be opened, and a protocol that does not fit."""
        problems = self._task_problems()
        if self.protocol in DENSE:
            problems += self._dense_problems()
        elif self.protocol in END_TO_END:
            problems += self._end_to_end_problems()
        else:
            split = self.choice_split if chooses(self.method) else None
            wrong = check_data(self.dataset, self.data_root, split)
            problems += [f"choice_{text}" if text.startswith("split=") else text for text in wrong]
            problems += check_model(self.model, self.weights_root, classes=self.dataset.classes, frozen=True)
            if regularizer_settings(self.regularizer) is not RegularizerSettings:
                problems.append(f"protocol={self.protocol} leaves the base as it is: regularizer=none")
        if self.adaptation != "none" and self.protocol != "zero_shot":
            problems.append(f"adaptation={self.adaptation} is of protocol=zero_shot, not {self.protocol}")
        problems += self._start_problems()
        if self.protocol == "joint" and len(as_list(self.tasks)) < 2:
            problems.append("protocol=joint needs at least two tasks, such as 'tasks=[mnist,usps]'")
        return problems

    def check_search(self) -> list[str]:
        """A protocol or tasks without held-out images, which alone may decide."""
        if self.protocol in (*DENSE, "zero_shot"):
            return [
                f"protocol={self.protocol} measures test images alone, by which a search must not choose; sweep instead"
            ]
        nodes = task_nodes(self.tasks, self.task.model_dump(exclude_unset=True), self.method)
        if all(node.get("val_fraction") for node in nodes):
            return []
        return ["task.val_fraction=0: a search would have test images alone to choose by; set task.val_fraction=0.1"]

    def _start_problems(self) -> list[str]:
        """A file to start from that is no patch, or that more than one training would start from."""
        if self.patch_weights is None:
            return []
        given = f"patch_weights={self.patch_weights}"
        if kind_of(self.patch_weights) != "patch":
            return [f"{given}: there is no patch file there; recombine patch leaves some in patches/ of its folder"]
        if self.protocol != "single" or is_paint(self.method):
            return [f"{given} is for a patch on a frozen network: protocol=single, and a method that is no fine-tuning"]
        if len(as_list(self.tasks)) != 1:
            return [f"{given} is one task's patch, and tasks names {len(as_list(self.tasks))}; name that task alone"]
        return []

    def _dense_problems(self) -> list[str]:
        """What does not fit where a patch is in the encoder of a network for pixels or objects."""
        protocol = f"protocol={self.protocol}"
        problems = check_model(self.model, self.weights_root, task=self.protocol)
        if is_paint(self.method) or self.method.get("mode") == "dua":
            problems.append(f"{protocol} trains heads with a patch: method=fc (no patch), delta, lora, ...")
        if self.model.weights is None and self.model.backbone_weights is None:
            problems.append(f"{protocol} freezes the backbone: model.backbone_weights=<a classifier's name>")
        return problems

    def _end_to_end_problems(self) -> list[str]:
        """What does not fit where base and patch train together."""
        problems = check_data(self.dataset, self.data_root, None) if self.protocol == "zero_shot" else []
        untrained = self.protocol in UNTRAINED
        node = self.model.model_dump(exclude_unset=True) | ({"weights": None} if untrained else {})
        problems += check_model(node, self.weights_root, frozen=not untrained)
        if is_paint(self.method):
            problems.append(
                f"protocol={self.protocol} has no base to interpolate with; "
                f"method=fc (the network alone) or method=delta"
            )
        if untrained and regularizer_settings(self.regularizer).reads_source:
            problems.append(f"protocol={self.protocol} has no trained base to hold on to; protocol=end_to_end has")
        return problems

    def _task_problems(self) -> list[str]:
        try:
            nodes = task_nodes(self.tasks, self.task.model_dump(exclude_unset=True), self.method)
        except ConfigError as error:
            return error.problems
        task = self.protocol if self.protocol in DENSE else "classification"
        return [
            f"task {node['name']}: {text.lstrip('.')}"
            for node in nodes
            for text in check_node(node, self.data_root, "", tasks=(task,))
        ]


def as_list(value: Any) -> list:
    """A list of the config; a single item stands for a list of one, null for an empty one."""
    return list(value) if isinstance(value, list | tuple) else [] if value is None else [value]


def is_paint(method: Mapping[str, Any]) -> bool:
    """Whether a method node is PAINT or fine-tuning, which change the base."""
    return schema_of(str(method.get("_target_"))) is Paint


def regularizer_settings(node: Mapping[str, Any]) -> type[RegularizerSettings]:
    """The settings class of a regularizer's node; the plain one of a class from elsewhere."""
    found = schema_of(str(node.get("_target_")))
    return found if found is not None and issubclass(found, RegularizerSettings) else RegularizerSettings


def chooses(method: Mapping[str, Any]) -> bool:
    """Whether a method node chooses something by held-out images."""
    return is_paint(method) and method.get("select") != "fixed"


def task_nodes(tasks: str | Sequence[str | Node], overlay: Node, method: Node) -> list[Node]:
    """The dataset node of every task, `overlay` included; ConfigError with every problem of the names.

    A task is a dataset's name, or a node {name, dataset, ...} with other settings of that dataset.
    """
    nodes: list[Node] = []
    problems: list[str] = []
    for item in as_list(tasks):
        given = {"name": item} if isinstance(item, str) else item
        dataset = str(given.get("dataset", given.get("name")))
        try:
            given = {key: value for key, value in given.items() if key != "dataset"}
            node = registry.node(dataset, given)
        except ConfigError as error:
            problems += [f"tasks: {text}" for text in error.problems]
            continue
        if problem := name_problem(str(node["name"])):
            problems.append(f"tasks: {problem}; 'tasks=[{{name: another, dataset: {dataset}}}]' gives another one")
            continue
        node |= overlay | given
        if node.get("val_fraction") == "auto":
            node["val_fraction"] = HELD_OUT if chooses(method) else 0.0
        nodes.append(node)
    names = [node["name"] for node in nodes]
    twice = sorted({name for name in names if names.count(name) > 1})
    problems += [f"tasks names {name} twice; give one of them another name" for name in twice]
    if not as_list(tasks):
        problems.append("tasks is empty; name at least one dataset, such as tasks=[mnist,usps]")
    if problems:
        raise ConfigError(problems)
    return nodes
