"""Build a Model from a name or a config node."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from recombine.models import weights, zoo
from recombine.models.model import Model, Preprocess, reset_head
from recombine.models.resolve import locate, preprocessing

__all__ = ["build"]


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
        Preprocess(**preprocessing(spec, made.preprocessing)),
        name=spec.name,
        classes=classes or made.classes,
        architecture=spec.architecture,
        options={**spec.options, **made.options},
        tag=made.tag,
        claimed_accuracy=made.claimed_accuracy,
    ).eval()
