"""Measuring networks: every sample once at any batch size and world size, and predictions that are computed once."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from recombine.core.distributed import gather_by_index, maximum, rank
from recombine.core.errors import ConfigError, DamagedError, WriteError
from recombine.core.files import read_tensors, write_tensors
from recombine.core.locks import exclusive
from recombine.core.types import Loader
from recombine.engine.metrics import Metric
from recombine.run.device import PRECISIONS, resolve

__all__ = [
    *(
        "PRECISIONS",
        "Predictions",
        "autocast",
        "cache_path",
        "compute_once",
        "evaluate",
        "evaluating",
        "full_fp32",
        "predict",
    ),
    *("read_cached", "resolve", "run_over", "write_cached"),
]

logger = logging.getLogger(__name__)


class Predictions(NamedTuple):
    """What a network says about a split, on the CPU, in the order of the samples' positions in it."""

    logits: Tensor
    """float32 [N, C]."""
    labels: Tensor
    """int64 [N]."""
    index: Tensor  # type: ignore[assignment]
    """int64 [N], increasing positions in the split."""


def autocast(precision: str, device: torch.device) -> AbstractContextManager:
    """The context a forward pass of this precision runs in."""
    precision = resolve(precision, device)
    return nullcontext() if precision == "fp32" else torch.autocast(device.type, PRECISIONS[precision])


@contextmanager
def full_fp32() -> Iterator[None]:
    """fp32 without TF32, which keeps 10 of its 23 bits: what runs inside agrees with a CPU."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Run a block in eval mode, without gradients or TF32; every sub-module gets its own mode back."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    for model in models:
        model.eval()
    try:
        # not inference_mode: what a module caches here may be needed by a later backward
        with full_fp32(), torch.no_grad():
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


def predict(
    model: nn.Module,
    loader: Loader,
    cache: Path | None = None,
    *,
    precision: str = "auto",
    stopped: Callable[[], object] = lambda: None,
) -> Predictions:
    """Logits of every sample of `loader`; with `cache` they are computed once for these weights and samples.

    `model` needs a `digest()` of weights and preprocessing where a cache is given. `stopped`: see `compute_once`.
    """

    def compute() -> dict[str, Tensor]:
        index, labels, logits = run_over(model, loader, lambda logits, labels: (logits,), precision)
        return {"logits": logits, "labels": labels, "index": index}

    path = cache_path(cache, model, loader, precision)
    return Predictions(**compute_once(path, Predictions._fields, compute, stopped=stopped))


def compute_once(
    path: Path | None,
    names: Sequence[str],
    compute: Callable[[], dict[str, Tensor]],
    *,
    stopped: Callable[[], object] = lambda: None,
) -> dict[str, Tensor]:
    """What the file `path` holds under these names, or else what `compute` gives, kept there.

    One process computes while others that ask for it wait; they call `stopped`, see `recombine.core.locks.exclusive`.
    """
    if path is None:
        return compute()
    stored = read_cached(path, names)
    if stored is None:
        first = rank() == 0  # the other ranks of its run follow it
        with exclusive(path.with_suffix(".lock"), stopped=stopped) if first else nullcontext():
            stored = read_cached(path, names)
            if stored is None:
                stored = compute()
                write_cached(path, stored)
    return stored


def run_over(
    model: nn.Module,
    loader: Loader,
    read: Callable[[Tensor, Tensor], tuple[Tensor, ...]],
    precision: str = "auto",
) -> tuple[Tensor, ...]:
    """One pass of `loader`: (positions in the split, labels, *what `read` made of logits and labels), on the CPU.

    The batches of all processes are joined by position. `read` gives tensors [B, ...] of a batch, so that logits need
    not be kept.
    """
    parts: list[tuple[Tensor, ...]] = []
    waiting: tuple[Tensor, ...] | None = None

    def collect(batch: tuple[Tensor, ...] | None) -> None:
        if batch is not None:
            parts.append(tuple(value.cpu() for value in batch))

    with evaluating(model), closing(loader.epoch(0)) as batches:
        for batch in batches:
            with autocast(precision, batch.images.device):
                logits = model(batch.images).float()
            # a batch is fetched only after the next one is under way, so that the device never idles
            collect(waiting)
            waiting = (batch.index.clone(), batch.labels.clone(), *read(logits, batch.labels))
    collect(waiting)
    none = torch.zeros(0, dtype=torch.int64)
    nothing = (none, none, *read(torch.zeros(0, 1), none))
    return gather_by_index(*(torch.cat(column) for column in zip(*(parts or [nothing]), strict=True)))


def cache_path(cache: Path | None, model: nn.Module, loader: Loader, precision: str) -> Path | None:
    """Where predictions of these weights for these samples are kept."""
    if cache is None:
        return None
    device = next((value.device for value in model.parameters()), torch.device("cpu"))
    identity = f"{model.digest()} {loader.digest} {resolve(precision, device)}"  # type: ignore[operator]
    return Path(cache) / "predictions" / f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}.safetensors"


def read_cached(path: Path | None, names: Sequence[str]) -> dict[str, Tensor] | None:
    """These tensors of a file of `write_cached`; None where it lacks one or is damaged. All processes decide alike."""
    stored = _read(path, names) if path is not None and path.exists() else None
    (missing,) = maximum(stored is None)
    return None if missing else stored


def _read(path: Path, names: Sequence[str]) -> dict[str, Tensor] | None:
    try:
        stored = read_tensors(path)[0]
    except DamagedError as error:
        logger.warning("cached predictions are computed again: %s", error)
        return None
    return {name: stored[name] for name in names} if stored.keys() >= {*names} else None


def write_cached(path: Path | None, tensors: Mapping[str, Tensor]) -> None:
    """Keep tensors for `read_cached`, written by the first process."""
    if path is not None and rank() == 0:
        try:
            write_tensors(path, tensors, {})
        except WriteError as error:
            logger.warning("predictions are not kept: %s", error)
