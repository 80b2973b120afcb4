"""The networks of a transfer: opened for the classes of the data, prepared as in the paper, saved for other uses."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from recombine import models as zoo
from recombine.core.errors import ConfigError
from recombine.core.files import write_atomically
from recombine.core.results import hide_paths
from recombine.core.settings import to_dict
from recombine.data import Data
from recombine.engine.evaluate import evaluating
from recombine.flips.heads import fit_heads
from recombine.models import Model
from recombine.models.model import Preprocess
from recombine.run.run import Run

if TYPE_CHECKING:
    from omegaconf import DictConfig

__all__ = ["loading_code", "match_preprocessing", "open_network", "open_teacher", "save_network"]


def open_teacher(cfg: DictConfig, run: Run, data: Data, node: Any) -> Model:
    """`open_network`, frozen."""
    return open_network(cfg, run, data, node).requires_grad_(False)


def open_network(cfg: DictConfig, run: Run, data: Data, node: Any) -> Model:
    """A trained network on the device, with as many classes as the data; `fit_heads` fits new classifiers.

    Raises ConfigError where it has another number of classes and `fit_heads` is false.
    """
    model = zoo.build(node, weights_root=cfg.weights_root, seed=cfg.seed)
    fits = model.classes == data.classes
    if not fits and not cfg.fit_heads:
        raise ConfigError(
            f"{model.name} has {model.classes} classes and {data.name} has {data.classes}; choose a network for "
            f"{data.classes} classes, let its classifier be fitted to the data first with fit_heads=true, or give the "
            f"labels among its {model.classes} with dataset.label_map and dataset.classes={model.classes}"
        )
    model = model if fits else zoo.build(node, classes=data.classes, weights_root=cfg.weights_root, seed=cfg.seed)
    model = model.to(run.device)
    if cfg.engine.channels_last:
        model = model.to(memory_format=torch.channels_last)
    if fits:
        return model
    images = data.loader("train", cfg.eval_batch_size, train=False, size=model.canvas)
    return fit_heads(model, images, cfg.engine.precision)


def match_preprocessing(teacher: Model, student: Model) -> Model:
    """Let a teacher work at the student's resolution and crop, with its own normalisation.

    A teacher of one fixed size gets the student's crop resized to that size.
    """
    original = teacher.preprocess
    settings = student.preprocess.settings() | {"mean": teacher.mean, "std": teacher.std}
    for size in (student.size, original.size):
        teacher.preprocess = Preprocess(**{**settings, "size": size}).to(_device(teacher))
        if _runs(teacher):
            return teacher
    raise ConfigError(
        f"{teacher.name} takes neither {student.size} nor {original.size} pixels; use teacher_preprocessing=own"
    )


def _device(model: Model) -> torch.device:
    return next(model.parameters()).device


def _runs(model: Model) -> bool:
    """Whether the network takes images of its size, tried with one image: libraries do not record it for all."""
    image = torch.zeros(1, 3, model.size, model.size, dtype=torch.uint8, device=_device(model))
    try:
        with evaluating(model):
            model(image)
    except (AssertionError, RuntimeError, ValueError):  # by a library's check, or by shapes that do not fit
        return False
    return True


def save_network(model: Model, path: Path, card: Mapping[str, Any], cfg: DictConfig) -> Path:
    """Write a network that loads outside this project, with its card inside and beside it; returns its path."""
    claim, model.claimed_accuracy = model.claimed_accuracy, card["metrics"].get("accuracy_after")
    card = {**card, "load": loading_code(model, path.name), "config": hide_paths(to_dict(cfg), cfg)}
    zoo.save(model, path, card)
    model.claimed_accuracy = claim
    write_atomically(path.with_suffix(".json"), json.dumps(card, indent=1) + "\n")
    write_atomically(path.with_name("labels.json"), json.dumps(card["class_names"], ensure_ascii=False) + "\n")
    return path


def loading_code(model: Model, file: str) -> str:
    """Python code that loads a saved network: a call of timm where timm builds it, with all of its options."""
    if not model.architecture.startswith(("timm:", "hf-hub:", "hf_hub:")):
        return f"recombine.models.build('{file}')"
    given = {"num_classes": model.classes, **model.options, "checkpoint_path": file}
    options = ", ".join(f"{key}={value!r}" for key, value in given.items())
    return f"timm.create_model('{model.architecture.removeprefix('timm:')}', {options})"
