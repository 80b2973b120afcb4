"""The parts that single and multi-teacher transfer share: predictions, the method, one training."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import nn

from recombine import models as zoo
from recombine.core.errors import ConfigError
from recombine.core.types import Batch, Loader
from recombine.data import Data
from recombine.data.mixed import LoaderWrapper
from recombine.engine.engine import Engine, Fit
from recombine.engine.evaluate import Predictions, predict, predict_many
from recombine.models import Model
from recombine.run.config import accepts, build
from recombine.run.console import show
from recombine.run.run import Run
from recombine.transfer.contrastive import ContrastiveSamples
from recombine.transfer.method import Transfer
from recombine.transfer.metrics import change, complementary, percent
from recombine.transfer.teacher_cache import FrozenTeachers, views

if TYPE_CHECKING:
    from omegaconf import DictConfig

__all__ = [
    "LR_SCALING",
    "TransferResult",
    "Unlabelled",
    "accuracy",
    "predictions",
    "train",
]

logger = logging.getLogger(__name__)
LR_SCALING = {"none": 0, "linear": 1}
"""How often the learning rate is multiplied by batch_size / 256."""


class TransferResult(NamedTuple):
    """What one training leaves; the student itself was trained in place."""

    method: Transfer
    fit: Fit
    after: Predictions


class Unlabelled(LoaderWrapper):
    """A training loader that keeps the labels to itself: they arrive as -1."""

    def change(self, batch: Batch) -> Batch:
        """The same batch without its labels."""
        return batch._replace(labels=torch.full_like(batch.labels, -1))


def predictions(cfg: DictConfig, run: Run, data: Data, models: Mapping[str, Model]) -> dict[str, Predictions]:
    """What trained networks say about the images of `split`, computed once for all runs; shows what they are."""
    said = predict_many(
        models, lambda canvas: eval_loader(cfg, data, canvas), run.cache, precision=cfg.engine.precision
    )
    if run.main:
        measured = {model.name: accuracy(said[role]) for role, model in models.items()}
        show(zoo.describe(models.values(), measured))
    return said


def accuracy(predictions: Predictions) -> float:
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
    shared: bool = True,
) -> TransferResult:
    """Train `student` in place with `cfg.method`.

    Its changes are measured from the predictions `before`, and what is left to learn by those of the (first) teacher.
    `shared`: other runs start from this student too, so its logits are worth storing.
    """
    method = make_method(cfg, student, teachers, partial(samples_of, data))
    if method.reads_labels:
        refuse_unlabelled(cfg, data)
    indices = data.indices("train", unlabelled=not method.reads_labels)
    loader = training_loader(cfg, data, [student, *teachers], indices)
    if cfg.cache_teacher_logits and method.reads_logits:
        remember(cfg, run, data, method, loader, {"teachers": run.cache, "initial": run.cache if shared else None})
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
    return TransferResult(method, fit, after)


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


def make_method(
    cfg: DictConfig, student: Model, teachers: Sequence[Model], samples: Callable[[], ContrastiveSamples]
) -> Transfer:
    """The method with what its constructor asks for."""
    supplies = {
        "teachers": lambda: FrozenTeachers(teachers),
        "initial": lambda: FrozenTeachers([deepcopy(student)]),
        "partner": lambda: teachers[0].requires_grad_(True),
        "samples": samples,
        "batch_size": lambda: cfg.batch_size,
    }
    return build(cfg.method, net=student, **{k: make() for k, make in supplies.items() if accepts(cfg.method, k)})


def samples_of(data: Data) -> ContrastiveSamples:
    """The training samples that have labels."""
    return ContrastiveSamples(torch.from_numpy(data.indices("train")), torch.from_numpy(data.labels("train")))


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


def remember(
    cfg: DictConfig, run: Run, data: Data, method: Transfer, loader: Loader, caches: Mapping[str, Path | None]
) -> None:
    """Look up the logits of frozen networks from now on, where the augmentation and their size allow it."""
    found = views(loader)
    if found is None or not method.frozen:
        return
    view, count = found
    plain_loader = data.loader("train", cfg.batch_size, train=False, indices=loader.indices, size=loader.size)
    networks = [model for part in method.frozen for model in method.get_submodule(part).models]
    size = sum(4 * plain_loader.samples * count * model.classes for model in networks) / 2**30
    if size > cfg.cache_limit_gib:
        logger.warning(
            f"the logits of {len(networks)} frozen networks would take {size:.3g} GiB, more than "
            f"cache_limit_gib={cfg.cache_limit_gib:g}: they are computed anew in every step, with the same result"
        )
        return
    method.to(run.device)
    for part in method.frozen:
        method.get_submodule(part).remember(plain_loader, view, count, caches[part], cfg.engine.precision)
