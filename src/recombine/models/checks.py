"""What would keep networks from being built, reported before anything is. Imports no torch for built-in ones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recombine.core.errors import ConfigError
from recombine.core.labels import LABELS
from recombine.core.settings import find_problems
from recombine.models.architectures import option_problems
from recombine.models.libraries import library_classes, no_weights, task_of, weights_problem
from recombine.models.registry import is_library, training_hint
from recombine.models.resolve import Spec, locate, preprocessing, resolve
from recombine.models.settings import ModelSettings, PreprocessSettings

__all__ = ["check", "check_model"]

GIVES = {
    "classification": "classifies images",
    "segmentation": "classifies every pixel",
    "detection": "finds boxes of objects",
}
NETWORKS = {
    "segmentation": "model=any model.name=torchvision:lraspp_mobilenet_v3_large model.weights=null",
    "detection": "model=faster_rcnn_resnet18",
}
DATA = {"segmentation": "dataset=camvid", "detection": "dataset=voc_detection"}


def _mend(task: str, own: str) -> str:
    """Another network for these data, or other data for a network that does not classify images."""
    return NETWORKS.get(task) or DATA[own]


def check_model(
    model: ModelSettings | Mapping[str, Any] | str,
    weights_root: str | Path,
    *,
    classes: int | None = None,
    frozen: bool = False,
    path: str = "model",
    task: str = "classification",
) -> list[str]:
    """What is wrong with a network at `path` of a config, and how to train one that pretraining has not made yet."""
    node = model.model_dump(exclude_unset=True) if isinstance(model, ModelSettings) else model
    name = node if isinstance(node, str) else str(node.get("name"))
    hint = training_hint(name, str(weights_root))
    problems = check(node, weights_root=weights_root, classes=classes, frozen=frozen, task=task)
    group = "model=" if path == "model" else f"model@{path}="
    return [text.replace("model=", group).replace("model.", f"{path}.") + hint for text in problems]


def check(
    model: str | Mapping[str, Any],
    *,
    weights_root: str | Path = "weights",
    classes: int | None = None,
    frozen: bool = False,
    task: str = "classification",
) -> list[str]:
    """What would keep `build` from working, one message each, without building anything.

    `task`: what the data are for: classification, segmentation or detection.
    `frozen`: the model is used as it is, so random weights and another number of classes are problems too.
    """
    root = Path(weights_root)
    try:
        spec, _ = resolve(model, root)
    except ConfigError as error:
        return error.problems
    problems = option_problems(spec.architecture, spec.options)
    if task != "classification" and spec.crop_pct not in (None, 1):
        problems.append(f"model.crop_pct={spec.crop_pct}: masks and boxes are of whole images; set model.crop_pct=1")
    try:
        spec, file = locate(model, root)
        problems = problems or _other_task(spec, task) or option_problems(spec.architecture, spec.options)
        if not is_library(spec.architecture):
            problems += find_problems(PreprocessSettings, preprocessing(spec, {}), "model")
        if problems:
            return problems
        if spec.weights is None and spec.backbone_weights is not None:
            problems += check(spec.backbone_weights, weights_root=weights_root)
        if spec.weights is not None and file is None and (problem := weights_problem(spec.architecture)):
            problems.append(no_weights(spec.architecture, problem))
        count = spec.classes or (
            None if file else library_classes(spec.architecture)
        )  # a file is read when it is built
    except ConfigError as error:
        return problems + error.problems
    return problems + (_not_as_it_is(spec, classes, count) if frozen else [])


def _not_as_it_is(spec: Spec, classes: int | None, count: int | None) -> list[str]:
    """Why a network with `count` classes cannot be used as it is on data with `classes`."""
    if spec.weights is None:
        return [f"model {spec.name} would have random weights; give trained ones with model.weights=<file>"]
    if None in (classes, count) or classes == count:
        return []
    return [
        f"model {spec.name} has {count} classes and the data {classes}; it is used as it is, so choose a model "
        f"trained for {classes} classes, or a label map (dataset.label_map) that gives the labels among its {count}"
    ]


def _other_task(spec: Spec, task: str) -> list[str]:
    """A message if a network gives logits of images where those of pixels are needed, and the like."""
    own = task_of(spec.architecture)
    if own is None or own == task:
        return []
    gives = f"model {spec.name} {GIVES[own]}, and the data have {LABELS[task]}"
    return [f"{gives}: {_mend(task, own)}"]
