"""The parts that single and multi-teacher transfer share: networks, predictions, one training, what is kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import nn

from src import models as zoo
from src.core.config import accepts, build, plain
from src.core.console import show
from src.core.engine import Engine, Fit
from src.core.errors import ConfigError
from src.core.evaluate import Predictions, evaluating, predict, predict_many
from src.core.files import write_atomically
from src.core.run import Run
from src.core.types import Batch, Loader
from src.data import Data
from src.models import Model
from src.models.model import Preprocess
from src.transfer.base import Transfer
from src.transfer.contrastive import Samples
from src.transfer.frozen import Frozen, views
from src.transfer.heads import fit_heads
from src.transfer.measures import change, complementary, percent

if TYPE_CHECKING:
    from omegaconf import DictConfig

__all__ = [
    "LR_SCALING",
    "Trained",
    "Unlabelled",
    "keep",
    "open_network",
    "open_teacher",
    "predictions",
    "top1",
    "train",
]

LR_SCALING = {"none": 0, "linear": 1}
"""How often the learning rate is multiplied by batch_size / 256."""


class Trained(NamedTuple):
    """What one training leaves; the student itself was trained in place."""

    method: Transfer
    fit: Fit
    after: Predictions


class Unlabelled:
    """A training loader that keeps the labels to itself: they arrive as -1."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader
        self.batch_size, self.samples, self.digest = loader.batch_size, loader.samples, loader.digest

    def __len__(self) -> int:
        return len(self.loader)

    def epoch(self, epoch: int, start: int = 0) -> Generator[Batch]:
        """The same batches without their labels."""
        with closing(self.loader.epoch(epoch, start)) as batches:
            for batch in batches:
                yield batch._replace(labels=torch.full_like(batch.labels, -1))

    def close(self) -> None:
        """Close the loader behind."""
        self.loader.close()


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
    raise ConfigError(f"{teacher.name} takes neither {student.size} nor {own.size} pixels; use teacher_view=own")


def runs(model: Model) -> bool:
    """Whether the network takes images of its size: asked of one image, as libraries do not say so of all networks."""
    image = torch.zeros(1, 3, model.size, model.size, dtype=torch.uint8, device=model.preprocess.scale.device)
    try:
        with evaluating(model):
            model(image)
    except (AssertionError, RuntimeError, ValueError):  # by a library's check, or by shapes that do not fit
        return False
    return True


def predictions(cfg: DictConfig, run: Run, data: Data, models: Mapping[str, Model]) -> dict[str, Predictions]:
    """What trained networks say about the images of `split`, computed once for all runs; shows what they are."""
    said = predict_many(
        models, lambda canvas: eval_loader(cfg, data, canvas), run.cache, precision=cfg.engine.precision
    )
    if run.main:
        measured = {model.name: top1(said[role]) for role, model in models.items()}
        show(zoo.describe(models.values(), measured))
    return said


def top1(predictions: Predictions) -> float:
    """Accuracy, percent."""
    return percent((predictions.logits.argmax(1) == predictions.labels).numpy())


def eval_loader(cfg: DictConfig, data: Data, canvas: int) -> Loader:
    """The images of `split`, or its first batches where the engine asks for a few (engine=debug)."""
    few = cfg.engine.max_eval_batches
    chosen = None if few is None else data.indices(cfg.split)[: few * cfg.eval_batch_size]
    return data.loader(cfg.split, cfg.eval_batch_size, train=False, indices=chosen, size=canvas)


def train(
    cfg: DictConfig,
    run: Run,
    data: Data,
    student: Model,
    teachers: Sequence[Model],
    before: Predictions,
    taught: Predictions,
    *,
    name: str = "transfer",
) -> Trained:
    """Train `student` in place with `cfg.method`.

    Its changes are measured from the predictions `before`, and what is left to learn by those of the (first) teacher.
    """
    method = make_method(cfg, student, teachers, partial(samples_of, data))
    if method.reads_labels:
        refuse_unlabelled(cfg, data)
    indices = data.indices("train", unlabelled=not method.reads_labels)
    loader = training_loader(cfg, data, [student, *teachers], indices)
    if cfg.remember and method.reads_logits:
        remember(cfg, run, data, method, loader)
    watch = _Watch(method, eval_loader(cfg, data, student.canvas), before, taught, cfg.engine.precision)
    fit = Engine(cfg.engine, run).fit(
        method,
        loader if method.reads_labels else Unlabelled(loader),
        build(cfg.optimizer, lr=learning_rate(cfg)),
        build(cfg.schedule),
        name=name,
        evaluate=watch,
    )
    method.publish()
    # a training that had been finished before is loaded without being evaluated again
    after = watch.latest or predict(student, watch.loader, precision=cfg.engine.precision)
    return Trained(method, fit, after)


def learning_rate(cfg: DictConfig) -> float:
    """The method's rate, scaled for the batch size and by `lr_factor`."""
    return cfg.optimizer.lr * cfg.lr_factor * (cfg.batch_size / 256) ** LR_SCALING[cfg.lr_scaling]


class _Watch:
    """Measures a student while it trains, and keeps its latest predictions."""

    def __init__(
        self, method: Transfer, loader: Loader, before: Predictions, taught: Predictions, precision: str
    ) -> None:
        self.method, self.loader, self.precision = method, loader, precision
        self.labels = before.labels.numpy()
        self.before, self.teacher = (said.logits.argmax(1).numpy() for said in (before, taught))
        self.latest: Predictions | None = None

    def __call__(self, net: nn.Module) -> dict[str, float]:
        with self.method.measured():
            self.latest = predict(net, self.loader, precision=self.precision)
        now = self.latest.logits.argmax(1).numpy()
        return change(self.before, now, self.labels) | complementary(now, self.teacher, self.labels)


def make_method(cfg: DictConfig, student: Model, teachers: Sequence[Model], samples: Callable[[], Samples]) -> Transfer:
    """The method with what its constructor asks for."""
    supplies = {
        "teachers": lambda: Frozen(teachers),
        "initial": lambda: Frozen([deepcopy(student)]),
        "partner": lambda: teachers[0].requires_grad_(True),
        "samples": samples,
        "batch_size": lambda: cfg.batch_size,
    }
    return build(cfg.method, net=student, **{k: make() for k, make in supplies.items() if accepts(cfg.method, k)})


def samples_of(data: Data) -> Samples:
    """The training samples that have labels."""
    return Samples(torch.from_numpy(data.indices("train")), torch.from_numpy(data.labels("train")))


def training_loader(cfg: DictConfig, data: Data, models: Sequence[Model], indices: np.ndarray) -> Loader:
    """Random crops come at the largest input size, whole images at the largest canvas, which each network shrinks."""
    options = {"train": True, "indices": indices}
    loader = data.loader("train", cfg.batch_size, size=max(model.size for model in models), **options)
    if loader.crop is not None:
        return loader
    return data.loader("train", cfg.batch_size, size=max(model.canvas for model in models), **options)


def refuse_unlabelled(cfg: DictConfig, data: Data) -> None:
    """Raise ConfigError where a method reads labels that are not there."""
    missing = len(data.indices("train", unlabelled=True)) - len(data.indices("train"))
    if missing:
        raise ConfigError(
            f"method={cfg.method.name} reads labels, but {missing} training images of {data.name} have none; "
            f"methods without labels: method=kl_dp_u, method=kl"
        )


def remember(cfg: DictConfig, run: Run, data: Data, method: Transfer, loader: Loader) -> None:
    """Look up the logits of frozen networks from now on, where the augmentation allows it."""
    found = views(loader)
    if found is None or not method.frozen:
        return
    view, count = found
    method.to(run.device)
    plain_loader = data.loader("train", cfg.batch_size, train=False, indices=loader.indices, size=loader.size)
    for part in method.frozen:
        method.get_submodule(part).remember(plain_loader, view, count, run.cache, cfg.engine.precision)


def keep(model: Model, path: Path, card: Mapping[str, Any], cfg: DictConfig) -> str:
    """Write a network that loads outside this project, with its card inside and beside it; returns the file's name."""
    claim, model.claimed_top1 = model.claimed_top1, card["metrics"].get("accuracy_after")
    card = {**card, "load": load_line(model, path.name), "config": plain(cfg)}
    zoo.save(model, path, card)
    model.claimed_top1 = claim
    write_atomically(path.with_suffix(".json"), json.dumps(card, indent=1) + "\n")
    return path.name


def load_line(model: Model, file: str) -> str:
    """The line of Python that loads a kept network: timm's own where timm builds it, with all of its options."""
    if not model.architecture.startswith(("timm:", "hf-hub:", "hf_hub:")):
        return f"src.models.build('{file}')"
    given = {"num_classes": model.classes, **model.options, "checkpoint_path": file}
    options = ", ".join(f"{key}={value!r}" for key, value in given.items())
    return f"timm.create_model('{model.architecture.removeprefix('timm:')}', {options})"
