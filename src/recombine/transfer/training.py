"""The common parts of single and multi-teacher transfer: predictions, the method, one training."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from recombine import models as zoo
from recombine.core.errors import ConfigError, Interrupted
from recombine.core.types import Batch
from recombine.data import Data
from recombine.data.loading import BatchLoader
from recombine.data.mixed import LoaderWrapper
from recombine.engine.class_predictions import ClassPredictions, predict_classes
from recombine.engine.engine import Engine, Fit
from recombine.engine.evaluate import predict
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

__all__ = [
    *("LR_SCALING", "TransferResult", "UnlabelledLoader", "accuracy", "predict_split", "train"),
    *("has_split", "raise_if_stopped", "show_networks"),
]

logger = logging.getLogger(__name__)
LR_SCALING = {"none": 0, "linear": 1}
"""How often the learning rate is multiplied by batch_size / 256."""


class TransferResult(NamedTuple):
    """The result of one training; the student itself was trained in place."""

    method: Transfer
    fit: Fit
    val: ClassPredictions | None
    """Of the student on the validation images, if there are some."""


class UnlabelledLoader(LoaderWrapper):
    """A training loader without labels: they arrive as -1."""

    def change(self, batch: Batch) -> Batch:
        """The same batch without its labels."""
        return batch._replace(labels=torch.full_like(batch.labels, -1))


def has_split(cfg: DictConfig, data: Data, split: str | None) -> bool:
    """Whether there are images to measure on: `split=null` says that there are none, `val` may have no labels."""
    return split is not None and (split != "val" or ("val" in data.splits and len(data.indices("val")) > 0))


def require_val(cfg: DictConfig, data: Data, what: str) -> None:
    """ConfigError where a choice needs labelled validation images and there are none."""
    if not has_split(cfg, data, "val"):
        raise ConfigError(f"{what} by validation images, of which {data.name} has none with a label")


def predict_split(
    cfg: DictConfig, run: Run, data: Data, split: str | None, models: Mapping[str, Model], *, keep: bool = True
) -> dict[str, ClassPredictions]:
    """Predictions of networks for a split, empty where there is none; with `keep` computed once for all runs."""
    if not has_split(cfg, data, split):
        return {}
    cache, options = run.cache if keep else None, {"precision": cfg.engine.eval_precision}
    return {
        role: predict_classes(
            model, eval_loader(cfg, data, split, model.canvas), cache, stopped=partial(raise_if_stopped, run), **options
        )
        for role, model in models.items()
    }


def show_networks(run: Run, models: Mapping[str, Model], predictions: Mapping[str, ClassPredictions]) -> None:
    """A table of the networks, with their accuracy on the validation images if there are some."""
    if run.main:
        accuracies = {models[role].name: accuracy(found) for role, found in predictions.items()}
        show(zoo.describe(models.values(), accuracies or None, "val"))


def raise_if_stopped(run: Run) -> None:
    """Interrupted if a signal asked this run to stop: while it waits for another process."""
    if signal := run.stop_requested():
        raise Interrupted(signal)


def accuracy(predictions: ClassPredictions) -> float:
    """Accuracy, percent."""
    return percent(predictions.right)


def eval_loader(cfg: DictConfig, data: Data, split: str | None, canvas: int) -> BatchLoader:
    """The images of a split, or its first batches where the engine asks for a few (engine=debug)."""
    assert split is not None
    few = cfg.engine.max_eval_batches
    indices = None if few is None else data.indices(split)[: few * cfg.eval_batch_size]
    return data.loader(split, cfg.eval_batch_size, train=False, indices=indices, size=canvas)


def train(
    cfg: DictConfig,
    run: Run,
    data: Data,
    student: Model,
    teachers: Sequence[Model],
    val: Mapping[str, ClassPredictions],
    *,
    node: Any = None,
    name: str = "transfer",
    cache_initial: bool = True,
    epochs: int = 1,
) -> TransferResult:
    """Train `student` in place with `cfg.method`, or with the method that `node` names.

    `val` has predictions of `student` and (first) `teacher` for validation images; without it nothing is evaluated on
    the way. `cache_initial`: other runs start from it too. `epochs` multiplies those of the engine.
    """
    method = prepare_method(cfg, run, data, cfg.method if node is None else node, student, teachers, epochs)
    loader = open_training_loader(cfg, data, [student, *teachers], labelled=method.reads_labels)
    if cfg.cache_teacher_logits and method.reads_logits:
        caches = {"teachers": run.cache, "initial": run.cache if cache_initial else None}
        cache_teacher_logits(cfg, run, data, method, loader, caches)
    images = eval_loader(cfg, data, "val", student.canvas) if val else None
    evaluator = _Evaluator(method, images, val, cfg.engine.eval_precision) if images is not None else None
    most = cfg.engine.max_steps and cfg.engine.max_steps * epochs
    fit = Engine({**cfg.engine, "epochs": cfg.engine.epochs * epochs, "max_steps": most}, run).fit(
        method,
        loader if method.reads_labels else UnlabelledLoader(loader),
        build(cfg.optimizer, lr=learning_rate(cfg)),
        build(cfg.schedule),
        name=name,
        evaluate=evaluator,
    )
    method.publish()
    if evaluator is None:
        return TransferResult(method, fit, None)
    # a training that had been finished before is loaded without being evaluated again
    latest = evaluator.latest or predict_classes(student, evaluator.loader, precision=cfg.engine.eval_precision)
    return TransferResult(method, fit, latest)


def prepare_method(
    cfg: DictConfig, run: Run, data: Data, node: Any, student: Model, teachers: Sequence[Model], epochs: int
) -> Transfer:
    """The method that `node` names, with its frozen networks calibrated and compiled where that is asked for."""
    sizes = {"batch_size": cfg.batch_size, "epochs": cfg.engine.epochs * epochs}
    method = make_method(node, sizes, student, teachers, partial(labelled_samples, data))
    if method.reads_labels:
        refuse_unlabelled(node, data)
    if getattr(method, "calibrated", False):
        calibrate(cfg, run, data, method)
    if cfg.engine.compile:
        for model in (model for part in method.frozen for model in getattr(method, part).models):
            model.compile()
    return method


def calibrate(cfg: DictConfig, run: Run, data: Data, method: Transfer) -> None:
    """Fit the temperatures of a method's frozen networks to validation images."""
    require_val(cfg, data, f"method={cfg.method.name} is calibrated")
    networks = [model for part in ("initial", "teachers") for model in getattr(method, part).models]
    found = [
        predict(model.to(run.device), eval_loader(cfg, data, "val", model.canvas), precision=cfg.engine.eval_precision)
        for model in networks
    ]
    method.calibrate([each.logits for each in found], found[0].labels)  # type: ignore[operator]


def learning_rate(cfg: DictConfig) -> float:
    """The method's rate, scaled for the batch size and by `lr_factor`."""
    return cfg.optimizer.lr * cfg.lr_factor * (cfg.batch_size / 256) ** LR_SCALING[cfg.lr_scaling]


class _Evaluator:
    """Evaluates a student on validation images while it trains; `latest` are its latest predictions."""

    def __init__(
        self, method: Transfer, loader: BatchLoader, val: Mapping[str, ClassPredictions], precision: str
    ) -> None:
        self.method, self.loader, self.precision = method, loader, precision
        self.val, self.latest = val, None

    latest: ClassPredictions | None

    def __call__(self, net: nn.Module) -> dict[str, float]:
        with self.method.evaluation_weights():
            self.latest = predict_classes(net, self.loader, precision=self.precision)
        right = {"after": self.latest.right} | {role: found.right for role, found in self.val.items()}
        metrics = accuracy_changes(right["student"], right["after"])
        return metrics | (complementary_knowledge(right["after"], right["teacher"]) if "teacher" in right else {})


def make_method(
    node: Any,
    sizes: Mapping[str, int],
    student: Model,
    teachers: Sequence[Model],
    samples: Callable[[], ContrastiveSamples],
) -> Transfer:
    """The method with the late arguments that its constructor takes."""
    late: dict[str, Callable[[], Any]] = {
        "teachers": lambda: FrozenTeachers(teachers),
        "initial": lambda: FrozenTeachers([deepcopy(student)]),
        "partner": lambda: teachers[0].requires_grad_(True),
        "samples": samples,
    }
    given = {key: make() for key, make in late.items() if accepts(node, key)}
    return build(node, net=student, **given, **{key: value for key, value in sizes.items() if accepts(node, key)})


def labelled_samples(data: Data) -> ContrastiveSamples:
    """The training samples that have labels."""
    return ContrastiveSamples(torch.from_numpy(data.indices("train")), torch.from_numpy(data.labels("train")))


def open_training_loader(cfg: DictConfig, data: Data, models: Sequence[Model], *, labelled: bool) -> BatchLoader:
    """Random crops come at the largest input size, whole images at the largest canvas, which each network shrinks."""
    indices = data.indices("train", unlabelled=not labelled)
    size, canvas = (max(getattr(model, side) for model in models) for side in ("size", "canvas"))
    loader = data.loader("train", cfg.batch_size, train=True, indices=indices, size=size, even=True)
    if loader.crop is not None:
        return loader
    return data.loader("train", cfg.batch_size, train=True, indices=indices, size=canvas, even=True)


def count_unlabelled(data: Data) -> int:
    """Training images without a label."""
    return len(data.indices("train", unlabelled=True)) - len(data.indices("train"))


def refuse_unlabelled(node: Any, data: Data) -> None:
    """Raise ConfigError where a method reads labels that are not there."""
    if missing := count_unlabelled(data):
        raise ConfigError(
            f"method={node['name']} reads labels, but {missing} training images of {data.name} have none; "
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
        stopped = partial(raise_if_stopped, run)
        getattr(method, part).cache_logits(unaugmented, mirroring, caches[part], cfg.engine.precision, stopped)
