"""The networks of a transfer: opened with the classes of the data, seen as the paper does, and kept for other uses."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from recombine import models as zoo
from recombine.core.errors import ConfigError
from recombine.core.files import write_atomically
from recombine.data import Data
from recombine.engine.evaluate import evaluating
from recombine.models import Model
from recombine.models.model import Preprocess
from recombine.run.config import plain
from recombine.run.run import Run
from recombine.transfer.heads import fit_heads

if TYPE_CHECKING:
    from omegaconf import DictConfig

__all__ = ["as_seen_by_student", "keep", "load_line", "open_network", "open_teacher"]


def open_teacher(cfg: DictConfig, run: Run, data: Data, node: Any) -> Model:
    """`open_network`, frozen."""
    return open_network(cfg, run, data, node).requires_grad_(False)


def open_network(cfg: DictConfig, run: Run, data: Data, node: Any) -> Model:
    """A trained network on the device, with as many classes as the data: its own, or new ones (`fit_heads`).

    Raises ConfigError where it has another number of classes and no new ones are asked for.
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
    model = model.to(run.device, memory_format=torch.channels_last if cfg.engine.channels_last else None)
    if fits:
        return model
    images = data.loader("train", cfg.eval_batch_size, train=False, size=model.canvas)
    return fit_heads(model, images, cfg.engine.precision)


def as_seen_by_student(teacher: Model, student: Model) -> Model:
    """Let a teacher work at the student's resolution and crop, with its own normalisation.

    A teacher of one fixed size gets the student's crop resized to that size (A10).
    """
    own = teacher.preprocess
    view = student.preprocess.settings() | {"mean": teacher.mean, "std": teacher.std}
    for size in (student.size, own.size):
        teacher.preprocess = Preprocess(**{**view, "size": size}).to(own.scale.device)
        if runs(teacher):
            return teacher
    raise ConfigError(
        f"{teacher.name} takes neither {student.size} nor {own.size} pixels; use teacher_preprocessing=own"
    )


def runs(model: Model) -> bool:
    """Whether the network takes images of its size: asked of one image, as libraries do not say so of all networks."""
    image = torch.zeros(1, 3, model.size, model.size, dtype=torch.uint8, device=model.preprocess.scale.device)
    try:
        with evaluating(model):
            model(image)
    except (AssertionError, RuntimeError, ValueError):  # by a library's check, or by shapes that do not fit
        return False
    return True


def keep(model: Model, path: Path, card: Mapping[str, Any], cfg: DictConfig) -> str:
    """Write a network that loads outside this project, with its card inside and beside it; returns the file's name."""
    claim, model.claimed_accuracy = model.claimed_accuracy, card["metrics"].get("accuracy_after")
    card = {**card, "load": load_line(model, path.name), "config": plain(cfg)}
    zoo.save(model, path, card)
    model.claimed_accuracy = claim
    write_atomically(path.with_suffix(".json"), json.dumps(card, indent=1) + "\n")
    return path.name


def load_line(model: Model, file: str) -> str:
    """The line of Python that loads a kept network: timm's own where timm builds it, with all of its options."""
    if not model.architecture.startswith(("timm:", "hf-hub:", "hf_hub:")):
        return f"recombine.models.build('{file}')"
    given = {"num_classes": model.classes, **model.options, "checkpoint_path": file}
    options = ", ".join(f"{key}={value!r}" for key, value in given.items())
    return f"timm.create_model('{model.architecture.removeprefix('timm:')}', {options})"
