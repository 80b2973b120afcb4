"""Build a Model from a name or a config node."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torchvision.models import ResNet18_Weights

from recombine.models import weights, zoo
from recombine.models.dense import load_encoder
from recombine.models.model import Model, Preprocess, reset_head
from recombine.models.resolve import locate, preprocessing
from recombine.models.serialization import kind_of, read_card

__all__ = ["build"]

ANY_CLASSES = 1009
"""Outputs by which a classifier is found in a network: a number that no other layer has."""


def build(
    model: str | Mapping[str, Any], *, classes: int | None = None, weights_root: str | Path = "weights", seed: int = 0
) -> Model:
    """The model of a name or node, in eval mode on the CPU.

    Random parts come from `seed` alone; torch's generator stays as it was. If the weights have another number of
    outputs than `classes`, the classifier is replaced by a random one and the tag says so.
    Raises ConfigError for whatever `check` would name, and for checkpoints that do not fit.
    """
    spec, file = locate(model, Path(weights_root))
    trained = spec.weights is not None
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        loads = trained and file is None
        create = partial(zoo.create, spec.architecture, spec.options, pretrained=loads, size=spec.size)
        outputs = spec.classes if trained else classes or spec.classes
        if file is not None and outputs is None:
            outputs = weights.stored_classes(create(classes=ANY_CLASSES).net, ANY_CLASSES, file)
        made = create(classes=outputs)
        if not trained and spec.backbone_weights is not None:
            source = build(spec.backbone_weights, weights_root=weights_root)
            load_encoder(made.net, source.net, spec.backbone_weights)
            made.tag = f"backbone of {source.tag}"
        if file is not None:
            which = weights.load(made.net, file, spec.use_ema)
            made.tag, made.claimed_accuracy = file.name + f" (weights: {which})" * bool(which), spec.claimed_accuracy
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
        class_names=stored_names(file, made.classes) if classes in (None, made.classes) else None,
    ).eval()


def stored_names(file: Path | None, classes: int) -> list[str] | None:
    """The names of a trained network's classes: those of its file, ImageNet's of 1000; None if they are not known."""
    card = read_card(file, "student") if file and kind_of(file) == "student" else {}
    names = card.get("class_names")
    if isinstance(names, list) and len(names) == classes:
        return [str(name) for name in names]
    imagenet = ResNet18_Weights.IMAGENET1K_V1.meta["categories"]
    return list(imagenet) if classes == len(imagenet) else None
