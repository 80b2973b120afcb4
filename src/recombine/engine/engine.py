"""Engine: the training loop of all experiments."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from recombine.core.distributed import maximum
from recombine.core.errors import Interrupted, NotFinite
from recombine.core.random_state import preserved_rng
from recombine.core.types import Batch, Loader
from recombine.engine.divergence import explain
from recombine.engine.evaluate import evaluate, full_fp32
from recombine.engine.method import Method
from recombine.engine.metrics import Metric
from recombine.engine.settings import EngineSettings
from recombine.engine.training import Fit, Training
from recombine.run.signals import breakable, finishing

if TYPE_CHECKING:
    from recombine.run.run import Run

__all__ = ["Engine", "Fit"]

AGREE_EVERY = 10  # steps between which processes do not ask each other whether to stop or save


class Engine:
    """Trains methods within a run; knows no paper."""

    def __init__(self, cfg: EngineSettings | Mapping[str, Any], run: Run) -> None:
        self.cfg = EngineSettings.of(cfg, "engine")
        self.run = run
        self.names: set[str] = set()

    def evaluator(self, loader: Loader, metrics: Mapping[str, Metric]) -> Callable[[nn.Module], dict[str, float]]:
        """What `fit` takes as `evaluate`: these metrics on this loader in `eval_precision`."""
        precision, most = self.cfg.eval_precision, self.cfg.max_eval_batches
        return partial(evaluate, loader=loader, metrics=metrics, precision=precision, max_batches=most)

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

        The net is trained in place. It gets the averaged weights if engine.ema_decay is set, and those of the best
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
            with training.journal.display, finishing():
                while True:
                    if evaluate is not None and training.evaluation_due():
                        self._evaluate(training, evaluate)
                    training.journal.report()
                    if training.step >= training.plan.total:
                        break
                    self._epoch(training)
                training.save(finished=True)
        except NotFinite as error:
            raise explain(error, training) from None

    def _evaluate(self, training: Training, evaluate: Callable[[nn.Module], dict[str, float]]) -> None:
        """Evaluate; what was trained is kept if a signal breaks it off."""
        try:
            with breakable():
                signal = self.run.stop_requested()
                if signal and self.run.world == 1:
                    raise Interrupted(signal)
                training.evaluate(evaluate)
        except Interrupted:
            training.save()
            raise

    def _epoch(self, training: Training) -> None:
        """Train from where `training` stands to the end of its epoch, or of all steps."""
        start, end = training.begin_epoch(), training.plan.epoch_end(training.step)
        with closing(training.train.epoch(training.plan.epoch(training.step), start=start)) as batches:
            with preserved_rng(self.run.device):  # a loader may seed itself from the global generator as it starts
                first = next(batches)
            training.journal.start_clock()
            remaining = chain([first], batches)
            while training.step < end:
                self._update(training, remaining)
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
    exact = full_fp32() if deterministic else nullcontext()
    if deterministic:
        # cuBLAS reads it at its first use: `launch` has to set it too where nets run before the first fit
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic or before[0])
    torch.backends.cudnn.benchmark = not deterministic
    try:
        with exact:
            yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]
