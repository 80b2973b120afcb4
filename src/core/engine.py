"""Engine: the only training loop of the project."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, fields
from functools import partial
from itertools import chain
from types import UnionType
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

import torch
from torch import nn

from src.core.checkpoint import preserved_rng
from src.core.distributed import maximum
from src.core.divergence import NotFinite, explain
from src.core.errors import ConfigError, Interrupted
from src.core.evaluate import PRECISIONS, evaluate
from src.core.method import Method
from src.core.metrics import Metric
from src.core.training import Fit, Training
from src.core.types import Batch, Loader

if TYPE_CHECKING:
    from src.core.run import Run

__all__ = ["Engine", "EngineConfig", "Fit"]

AGREE_EVERY = 10  # steps between which processes do not ask each other whether to stop or save


@dataclass(frozen=True)
class EngineConfig:
    """Settings of the training loop; wrong types and values raise ConfigError."""

    epochs: float = 1
    """Passes over the training data; fractions are allowed."""
    precision: str = "auto"
    """auto (bf16 on CUDA, else fp32), fp32, bf16 or fp16. fp16 needs optimizer.fused=true to run without waiting."""
    channels_last: bool = True
    compile: bool = False
    """torch.compile of the method's net."""
    accumulate: int = 1
    """Batches per optimizer step."""
    clip_norm: float | None = None
    ema: float | None = None
    """Decay of a weight average; if set, it is what is evaluated and published."""
    eval_every: int = 1
    """Epochs between evaluations; the end is always evaluated."""
    log_every: int = 50
    """Optimizer steps between log points, the only ones at which the host waits for the device."""
    save_every_minutes: float = 10
    save_every_steps: int | None = None
    max_steps: int | None = None
    """Ends training early; schedules then run over these steps."""
    max_eval_batches: int | None = None
    deterministic: bool = False
    resume: str = "auto"
    """auto, never or must."""
    keep_best: bool = True
    """Publish the best evaluated weights instead of the last, in fits that name a metric for it."""

    @classmethod
    def of(cls, node: EngineConfig | Mapping[str, Any]) -> EngineConfig:
        """Settings from the `engine` node of a config."""
        if isinstance(node, cls):
            return node
        known = [field.name for field in fields(cls)]
        problems = []
        for key in node:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1)
                problems.append(f"engine.{key} is unknown" + (f"; did you mean engine.{near[0]}?" if near else ""))
        if problems:
            raise ConfigError(problems)
        return cls(**dict(node))

    def __post_init__(self) -> None:
        problems = [
            problem for name, hint in get_type_hints(type(self)).items() if (problem := self._wrong(name, hint))
        ]
        for name, allowed in (("precision", ("auto", *PRECISIONS)), ("resume", ("auto", "never", "must"))):
            if getattr(self, name) not in allowed:
                problems.append(f"engine.{name}={getattr(self, name)}: one of {', '.join(allowed)} is needed")
        if problems:
            raise ConfigError(problems)

    def _wrong(self, name: str, hint: type | UnionType) -> str | None:
        value, allowed = getattr(self, name), get_args(hint) or (hint,)
        if type(value) in allowed or (type(value) is int and float in allowed):
            smallest = 1 if name in ("accumulate", "eval_every", "log_every", "save_every_steps") else 0
            if isinstance(value, (int, float)) and value < smallest:
                return f"engine.{name}={value}: at least {smallest} is needed"
            return None
        names = " or ".join("null" if kind is type(None) else kind.__name__ for kind in allowed)
        return f"engine.{name}={value!r}: {names} is needed, for example engine.{name}={getattr(type(self), name)}"


class Engine:
    """Trains methods within a run; knows no paper."""

    def __init__(self, cfg: EngineConfig | Mapping[str, Any], run: Run) -> None:
        self.cfg = EngineConfig.of(cfg)
        self.run = run
        self.names: set[str] = set()

    def evaluator(self, loader: Loader, metrics: Mapping[str, Metric]) -> Callable[[nn.Module], dict[str, float]]:
        """What `fit` takes as `evaluate`: these metrics on this loader in the engine's precision."""
        settings = {"precision": self.cfg.precision, "max_batches": self.cfg.max_eval_batches}
        return partial(evaluate, loader=loader, metrics=metrics, **settings)

    def fit(
        self,
        method: Method,
        train: Loader,
        optimizer: Callable,
        schedule: Callable,
        *,
        name: str = "fit",
        evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
        best: str | None = None,
    ) -> Fit:
        """Train `method` and return the published net with its metrics.

        `optimizer(parameter_groups)` and `schedule(optimizer, steps)` are constructors. `name` is the fit's folder
        for checkpoints and its prefix in logs, unique within a run: an interrupted fit of this name continues, a
        finished one is loaded and returned. `best` names the metric of `evaluate` to maximise (`-name`: minimise).

        The net is trained in place. It gets the averaged weights if engine.ema is set, and those of the best
        evaluation if `best` is given and engine.keep_best is on. Global random generators are seeded from the
        run's seed and `name`. Raises Interrupted, Diverged and ConfigError.
        """
        if name in self.names or not re.fullmatch(r"\w[\w.=+-]*(/\w[\w.=+-]*)*", name):
            raise ValueError(f"fit name {name!r} is taken or is no folder name")
        self.names.add(name)
        with _backends(self.cfg.deterministic):
            training = Training(self.cfg, self.run, method, train, optimizer, schedule, name, best)
            if not training.restore():
                self._train(training, evaluate)
            return training.result()

    def _train(self, training: Training, evaluate: Callable[[nn.Module], dict[str, float]] | None) -> None:
        """Train and evaluate from where `training` stands to the end."""
        try:
            with training.journal.display:
                while True:
                    if evaluate is not None and training.evaluation_due():
                        training.evaluate(evaluate)
                    training.journal.report()
                    if training.step >= training.plan.total:
                        break
                    self._epoch(training)
                training.save(finished=True)
        except NotFinite as error:
            raise explain(error, training) from None

    def _epoch(self, training: Training) -> None:
        """Train from where `training` stands to the end of its epoch, or of all steps."""
        start, end = training.begin_epoch(), training.plan.epoch_end(training.step)
        with closing(training.train.epoch(training.plan.epoch(training.step), start=start)) as batches:
            with preserved_rng(self.run.device):  # a loader may seed itself from the global generator as it starts
                first = next(batches)
            training.journal.start_clock()
            batches = chain([first], batches)
            while training.step < end:
                self._update(training, batches)
                self._between_steps(training, training.step == end)

    def _update(self, training: Training, batches: Iterator[Batch]) -> None:
        """One optimizer step."""
        parts = training.plan.parts(training.step)
        for part in range(parts):
            batch = next(batches)
            with training.synchronised(part == parts - 1):
                with training.autocast:
                    step = training.module(batch)
                training.backward(step.loss, parts)
            training.journal.interval.add(step, training.step, part)
        training.update()

    def _between_steps(self, training: Training, epoch_over: bool) -> None:
        """Log, save and stop where due."""
        step, journal = training.step, training.journal
        if epoch_over or step % self.cfg.log_every == 0:
            journal.read(step, training.lr)
        if epoch_over:
            journal.end_epoch(step, training.lr)
        journal.display.advance(step)
        if self.run.world > 1 and step % AGREE_EVERY and not epoch_over and not training.step_save_due():
            return
        signal, due = maximum(self.run.stop_requested() or 0, training.save_due())
        if signal or due:
            training.save()
        if signal:
            raise Interrupted(signal)


@contextmanager
def _backends(deterministic: bool) -> Iterator[None]:
    """Set the backends for exactness or for speed while a fit runs."""
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    if deterministic:
        # cuBLAS reads it at its first use: `launch` has to set it too where nets run before the first fit
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic or before[0])
    torch.backends.cudnn.benchmark = not deterministic
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]
