"""Measuring networks: every sample once at any batch size and world size, and predictions that are computed once."""

from __future__ import annotations

import hashlib
import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from recombine.core.distributed import gather_by_index, maximum, rank
from recombine.core.errors import ConfigError, DamagedError, WriteError
from recombine.core.files import read_tensors, write_tensors
from recombine.core.types import Loader
from recombine.engine.metrics import Metric

__all__ = ["PRECISIONS", "Predictions", "autocast", "evaluate", "evaluating", "predict", "predict_many", "resolve"]

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
logger = logging.getLogger(__name__)


class Predictions(NamedTuple):
    """What a network says about a split, on the CPU, in the order of the samples' positions in it."""

    logits: Tensor
    """float32 [N, C]."""
    labels: Tensor
    """int64 [N]."""
    index: Tensor  # type: ignore[assignment]
    """int64 [N], increasing positions in the split."""


def resolve(precision: str, device: torch.device) -> str:
    """The precision that `auto` means: bf16 on a CUDA device that has it, else fp32."""
    if precision == "auto":
        return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    if precision not in PRECISIONS:
        raise ConfigError(f"engine.precision={precision}: one of auto, {', '.join(PRECISIONS)} is needed")
    return precision


def autocast(precision: str, device: torch.device) -> AbstractContextManager:
    """The context a forward pass of this precision runs in."""
    precision = resolve(precision, device)
    return nullcontext() if precision == "fp32" else torch.autocast(device.type, PRECISIONS[precision])


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Run a block in eval mode without gradients; every sub-module gets its own mode back."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    for model in models:
        model.eval()
    try:
        with torch.no_grad():  # not inference_mode: what a module caches here may be needed by a later backward
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def evaluate(
    model: nn.Module,
    loader: Loader,
    metrics: Mapping[str, Metric],
    *,
    precision: str = "auto",
    max_batches: int | None = None,
) -> dict[str, float]:
    """Metrics of one pass over `loader` (epoch 0), over all processes.

    The keys of `metrics` only name them; results are merged, so two metrics must not give the same name.
    """
    for metric in metrics.values():
        metric.reset()
    with evaluating(model), closing(loader.epoch(0)) as batches:
        for batch in islice(batches, max_batches):
            with autocast(precision, batch.images.device):
                logits = model(batch.images)
            logits = logits.float()
            for metric in metrics.values():
                metric.update(logits, batch)
    results = [(name, value) for metric in metrics.values() for name, value in metric.compute().items()]
    if len(dict(results)) < len(results):
        raise ConfigError(f"two metrics give the same name: {', '.join(name for name, _ in results)}")
    return dict(results)


def predict(model: nn.Module, loader: Loader, cache: Path | None = None, *, precision: str = "auto") -> Predictions:
    """Logits of every sample of `loader`; with `cache` they are computed once for these weights and samples.

    `model` needs a `digest()` of weights and preprocessing where a cache is given.
    """
    path = _cache_path(cache, model, loader, precision)
    stored = _cached(path)
    if stored is None:
        (stored,) = _pass({"": model}, loader, precision).values()
        _store(path, stored)
    return stored


def predict_many(
    models: Mapping[str, nn.Module],
    open_loader: Callable[[int], Loader],
    cache: Path | None = None,
    *,
    precision: str = "auto",
) -> dict[str, Predictions]:
    """Predictions of several models with one pass over the data per input size (`model.canvas`).

    Models whose predictions are cached are not run again. Loaders opened here are closed.
    """
    groups: dict[int, dict[str, nn.Module]] = defaultdict(dict)
    for name, model in models.items():
        groups[int(model.canvas)][name] = model  # type: ignore[arg-type]
    results: dict[str, Predictions] = {}
    for canvas, group in groups.items():
        with closing(open_loader(canvas)) as loader:
            paths = {name: _cache_path(cache, model, loader, precision) for name, model in group.items()}
            stored = {name: _cached(path) for name, path in paths.items()}
            missing = {name: model for name, model in group.items() if stored[name] is None}
            fresh = _pass(missing, loader, precision) if missing else {}
        for name, predictions in fresh.items():
            _store(paths[name], predictions)
        results |= {name: kept for name, kept in stored.items() if kept is not None} | fresh
    return {name: results[name] for name in models}


def _pass(models: Mapping[str, nn.Module], loader: Loader, precision: str) -> dict[str, Predictions]:
    """One pass of the loader through all `models`."""
    outputs: dict[str, list[Tensor]] = {name: [] for name in models}
    known: list[tuple[Tensor, Tensor]] = []
    waiting: tuple | None = None

    def collect(batch: tuple[Tensor, Tensor, dict[str, Tensor]]) -> None:
        labels, index, logits = batch
        known.append((labels.cpu(), index.cpu()))
        for name, value in logits.items():
            outputs[name].append(value.cpu())

    with evaluating(*models.values()), closing(loader.epoch(0)) as batches:
        for batch in batches:
            with autocast(precision, batch.images.device):
                logits = {name: model(batch.images).float() for name, model in models.items()}
            # a batch is fetched only after the next one is under way, so that the device never idles
            if waiting is not None:
                collect(waiting)
            waiting = (batch.labels.clone(), batch.index.clone(), logits)
    if waiting is not None:
        collect(waiting)
    return _in_order(known, outputs)


def _in_order(known: list[tuple[Tensor, Tensor]], outputs: Mapping[str, list[Tensor]]) -> dict[str, Predictions]:
    """Join the batches of all processes by sample index."""
    empty = torch.zeros(0, dtype=torch.int64)
    labels = torch.cat([labels for labels, _ in known] or [empty])
    index = torch.cat([index for _, index in known] or [empty])
    logits = [torch.cat(batches) if batches else torch.zeros(0, 0) for batches in outputs.values()]
    index, labels, *logits = gather_by_index(index, labels, *logits)
    return {name: Predictions(value, labels, index) for name, value in zip(outputs, logits, strict=True)}


def _cache_path(cache: Path | None, model: nn.Module, loader: Loader, precision: str) -> Path | None:
    if cache is None:
        return None
    device = next((value.device for value in model.parameters()), torch.device("cpu"))
    identity = f"{model.digest()} {loader.digest} {resolve(precision, device)}"  # type: ignore[operator]
    return Path(cache) / "predictions" / f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}.safetensors"


def _cached(path: Path | None) -> Predictions | None:
    """Stored predictions; a damaged file is left out with a warning. All processes decide alike."""
    stored = _read(path) if path is not None and path.exists() else None
    (missing,) = maximum(stored is None)
    return None if missing else stored


def _read(path: Path) -> Predictions | None:
    try:
        return Predictions(**read_tensors(path)[0])
    except DamagedError as error:
        logger.warning("cached predictions are computed again: %s", error)
        return None


def _store(path: Path | None, predictions: Predictions) -> None:
    if path is not None and rank() == 0:
        try:
            write_tensors(path, predictions._asdict(), {})
        except WriteError as error:
            logger.warning("predictions are not kept: %s", error)
