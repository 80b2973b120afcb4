"""The parts that single and multi-teacher transfer share: predictions, the method, one training."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import nn

from recombine import models as zoo
from recombine.core.errors import ConfigError
from recombine.core.types import Batch
from recombine.data import Data
from recombine.data.loading import BatchLoader
from recombine.data.mixed import LoaderWrapper
from recombine.engine.engine import Engine, Fit
from recombine.engine.evaluate import Predictions, predict, predict_many
from recombine.models import Model
from recombine.run.config import accepts, build
from recombine.run.console import show
from recombine.run.run import Run
from recombine.transfer.contrastive import ContrastiveSamples
from recombine.transfer.method import Transfer
from recombine.transfer.metrics import accuracy_changes, complementary_knowledge, percent
from recombine.transfer.teacher_cache import FrozenTeachers, find_mirroring

if TYPE_CHECKING:
    from omegaconf import DictConfig

__all__ = ["LR_SCALING", "TransferResult", "UnlabelledLoader", "accuracy", "predict_split", "train"]

logger = logging.getLogger(__name__)
LR_SCALING = {"none": 0, "linear": 1}
"""How often the learning rate is multiplied by batch_size / 256."""


class TransferResult(NamedTuple):
    """The result of one training; the student itself was trained in place."""

    method: Transfer
    fit: Fit
    after: Predictions


class UnlabelledLoader(LoaderWrapper):
    """A training loader without labels: they arrive as -1."""

    def change(self, batch: Batch) -> Batch:
        """The same batch without its labels."""
        return batch._replace(labels=torch.full_like(batch.labels, -1))


def predict_split(cfg: DictConfig, run: Run, data: Data, models: Mapping[str, Model]) -> dict[str, Predictions]:
    """Predictions of trained networks for the images of `split`, computed once for all runs; shows a table of them."""
    predictions = predict_many(
        models, lambda canvas: eval_loader(cfg, data, canvas), run.cache, precision=cfg.engine.precision
    )
    if run.main:
        accuracies = {model.name: accuracy(predictions[role]) for role, model in models.items()}
        show(zoo.describe(models.values(), accuracies))
    return predictions


def accuracy(predictions: Predictions) -> float:
    """Accuracy, percent."""
    return percent((predictions.logits.argmax(1) == predictions.labels).numpy())


def eval_loader(cfg: DictConfig, data: Data, canvas: int) -> BatchLoader:
    """The images of `split`, or its first batches where the engine asks for a few (engine=debug)."""
    few = cfg.engine.max_eval_batches
    indices = None if few is None else data.indices(cfg.split)[: few * cfg.eval_batch_size]
    return data.loader(cfg.split, cfg.eval_batch_size, train=False, indices=indices, size=canvas)


def train(
    cfg: DictConfig,
    run: Run,
    data: Data,
    student: Model,
    teachers: Sequence[Model],
    before: Predictions,
    teacher: Predictions,
    *,
    name: str = "transfer",
    cache_initial: bool = True,
) -> TransferResult:
    """Train `student` in place with `cfg.method`.

    Its changes are relative to the predictions `before`; what is left to learn is relative to those of the (first)
    teacher. `cache_initial`: other runs start from this student too, so its logits are worth storing.
    """
    method = make_method(cfg, student, teachers, partial(labelled_samples, data))
    if method.reads_labels:
        refuse_unlabelled(cfg, data)
    indices = data.indices("train", unlabelled=not method.reads_labels)
    loader = training_loader(cfg, data, [student, *teachers], indices)
    if cfg.cache_teacher_logits and method.reads_logits:
        caches = {"teachers": run.cache, "initial": run.cache if cache_initial else None}
        cache_teacher_logits(cfg, run, data, method, loader, caches)
    evaluator = _Evaluator(method, eval_loader(cfg, data, student.canvas), before, teacher, cfg.engine.precision)
    fit = Engine(cfg.engine, run).fit(
        method,
        loader if method.reads_labels else UnlabelledLoader(loader),
        build(cfg.optimizer, lr=learning_rate(cfg)),
        build(cfg.schedule),
        name=name,
        evaluate=evaluator,
    )
    method.publish()
    # a training that had been finished before is loaded without being evaluated again
    after = evaluator.latest or predict(student, evaluator.loader, precision=cfg.engine.precision)
    return TransferResult(method, fit, after)


def learning_rate(cfg: DictConfig) -> float:
    """The method's rate, scaled for the batch size and by `lr_factor`."""
    return cfg.optimizer.lr * cfg.lr_factor * (cfg.batch_size / 256) ** LR_SCALING[cfg.lr_scaling]


class _Evaluator:
    """Evaluates a student while it trains, and keeps its latest predictions."""

    def __init__(
        self, method: Transfer, loader: BatchLoader, before: Predictions, teacher: Predictions, precision: str
    ) -> None:
        self.method, self.loader, self.precision = method, loader, precision
        self.labels = before.labels.numpy()
        self.before, self.teacher = (each.logits.argmax(1).numpy() for each in (before, teacher))
        self.latest: Predictions | None = None

    def __call__(self, net: nn.Module) -> dict[str, float]:
        with self.method.evaluation_weights():
            self.latest = predict(net, self.loader, precision=self.precision)
        now = self.latest.logits.argmax(1).numpy()
        return accuracy_changes(self.before, now, self.labels) | complementary_knowledge(now, self.teacher, self.labels)


def make_method(
    cfg: DictConfig, student: Model, teachers: Sequence[Model], samples: Callable[[], ContrastiveSamples]
) -> Transfer:
    """The method with the late arguments that its constructor takes."""
    late: dict[str, Callable[[], Any]] = {
        "teachers": lambda: FrozenTeachers(teachers),
        "initial": lambda: FrozenTeachers([deepcopy(student)]),
        "partner": lambda: teachers[0].requires_grad_(True),
        "samples": samples,
        "batch_size": lambda: cfg.batch_size,
    }
    return build(cfg.method, net=student, **{k: make() for k, make in late.items() if accepts(cfg.method, k)})


def labelled_samples(data: Data) -> ContrastiveSamples:
    """The training samples that have labels."""
    return ContrastiveSamples(torch.from_numpy(data.indices("train")), torch.from_numpy(data.labels("train")))


def training_loader(cfg: DictConfig, data: Data, models: Sequence[Model], indices: np.ndarray) -> BatchLoader:
    """Random crops come at the largest input size, whole images at the largest canvas, which each network shrinks."""
    size, canvas = (max(getattr(model, side) for model in models) for side in ("size", "canvas"))
    loader = data.loader("train", cfg.batch_size, train=True, indices=indices, size=size)
    if loader.crop is not None:
        return loader
    return data.loader("train", cfg.batch_size, train=True, indices=indices, size=canvas)


def refuse_unlabelled(cfg: DictConfig, data: Data) -> None:
    """Raise ConfigError where a method reads labels that are not there."""
    missing = len(data.indices("train", unlabelled=True)) - len(data.indices("train"))
    if missing:
        raise ConfigError(
            f"method={cfg.method.name} reads labels, but {missing} training images of {data.name} have none; "
            f"methods without labels: method=kl_dp_u, method=kl"
        )


def cache_teacher_logits(
    cfg: DictConfig, run: Run, data: Data, method: Transfer, loader: BatchLoader, caches: Mapping[str, Path | None]
) -> None:
    """Look up the logits of frozen networks from now on, where the augmentation and their size allow it."""
    mirroring = find_mirroring(loader.augment)
    if mirroring is None or not method.frozen:
        return
    unaugmented = data.loader("train", cfg.batch_size, train=False, indices=loader.indices, size=loader.size)
    networks = [model for part in method.frozen for model in getattr(method, part).models]
    size = sum(4 * unaugmented.samples * mirroring.forms * model.classes for model in networks) / 2**30
    if size > cfg.cache_limit_gib:
        logger.warning(
            f"the logits of {len(networks)} frozen networks would take {size:.3g} GiB, more than "
            f"cache_limit_gib={cfg.cache_limit_gib:g}: they are computed in every step, with the same result"
        )
        return
    method.to(run.device)
    for part in method.frozen:
        getattr(method, part).cache_logits(unaugmented, mirroring, caches[part], cfg.engine.precision)
