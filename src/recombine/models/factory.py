"""Build a Model from a name or a config node, and check one without building it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from recombine.core.errors import ConfigError
from recombine.models import weights, zoo
from recombine.models.model import Model, Preprocess, reset_head
from recombine.models.resolve import Spec, locate

__all__ = ["build", "check"]


def build(
    model: str | Mapping[str, Any], *, classes: int | None = None, weights_root: str | Path = "weights", seed: int = 0
) -> Model:
    """The model of a name or node, in eval mode on the CPU.

    Random parts come from `seed` alone and leave torch's generator as it was. If the weights have another number of
    outputs than `classes`, the classifier is replaced by a random one and the tag says so.
    Raises ConfigError for whatever `check` would name, and for checkpoints that do not fit.
    """
    spec, file = locate(model, Path(weights_root))
    trained = spec.weights is not None
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        made = zoo.create(
            spec.architecture,
            spec.options,
            classes=spec.classes if trained else classes or spec.classes,
            pretrained=trained and file is None,
            size=spec.size,
        )
        if file is not None:
            weights.load(made.net, file)
            made.tag, made.claimed_accuracy = file.name, spec.claimed_accuracy
        if classes is not None and classes != made.classes:
            reset_head(made.net, made.classes, classes)
            made.tag, made.claimed_accuracy = f"{made.tag} + new head of {classes} classes", None
    return Model(
        made.net,
        Preprocess(**_settings(spec, made.preprocessing)),
        name=spec.name,
        classes=classes or made.classes,
        architecture=spec.architecture,
        options={**spec.options, **made.options},
        tag=made.tag,
        claimed_accuracy=made.claimed_accuracy,
    ).eval()


def _settings(spec: Spec, library: Mapping[str, Any]) -> dict[str, Any]:
    settings = {**library, **spec.preprocessing()}
    missing = [f"model.{key}" for key in ("size", "mean", "std") if key not in settings]
    if missing:
        raise ConfigError(f"model {spec.name} does not say how to prepare images: set {', '.join(missing)}")
    for key in ("mean", "std"):
        if isinstance(settings[key], (int, float)):
            settings[key] = [settings[key]] * 3
    return settings


def check(
    model: str | Mapping[str, Any],
    *,
    weights_root: str | Path = "weights",
    classes: int | None = None,
    frozen: bool = False,
) -> list[str]:
    """What would keep `build` from working, one message each, without building anything.

    `frozen`: the model is used as it is, so random weights and another number of classes are problems too.
    """
    try:
        spec, file = locate(model, Path(weights_root))
        problems = zoo.option_problems(spec.architecture, spec.options)
        if problems:
            return problems
        own = spec.weights is not None and file is None
        if own and (problem := zoo.weights_problem(spec.architecture)):
            problems.append(zoo.no_weights(spec.architecture, problem))
        if not zoo.is_library(spec.architecture):
            Preprocess(**_settings(spec, {}))
        count = spec.classes or zoo.own_classes(spec.architecture)
    except ConfigError as error:
        return error.problems
    if frozen and spec.weights is None:
        problems.append(f"model {spec.name} would have random weights; give trained ones with model.weights=<file>")
    elif frozen and None not in (classes, count) and classes != count:
        problems.append(
            f"model {spec.name} has {count} classes and the data {classes}; it is used as it is, so choose a model "
            f"trained for {classes} classes, or a label map (dataset.label_map) that gives the labels among its {count}"
        )
    return problems
