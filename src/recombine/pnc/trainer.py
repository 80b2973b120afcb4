"""Trains methods with the settings of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from recombine.core.types import Loader
from recombine.engine.engine import Engine, Fit
from recombine.engine.method import Method
from recombine.engine.settings import EngineSettings
from recombine.pnc.settings import PncSettings
from recombine.run.config import build
from recombine.run.run import Run

__all__ = ["Trainer"]


@dataclass(frozen=True)
class Trainer:
    """The run's engine, optimizer and schedule."""

    run: Run
    engine: EngineSettings
    optimizer: Callable
    """Constructor from parameter groups."""
    schedule: Callable
    batch_size: int
    eval_batch_size: int
    """For passes over the training images without gradients."""
    folder: str = ""
    """Prefix of the names of fits, which keeps those of several sources apart."""

    @classmethod
    def from_settings(cls, settings: PncSettings, run: Run, folder: str = "") -> Trainer:
        """The trainer of a run."""
        optimizer, schedule = build(settings.optimizer), build(settings.schedule)
        return cls(run, settings.engine, optimizer, schedule, settings.batch_size, settings.eval_batch_size, folder)

    @property
    def seed(self) -> int:
        """Seed of everything random."""
        return self.run.seed

    @property
    def precision(self) -> str:
        """Of autocast, also in evaluations."""
        return self.engine.precision

    def fit(
        self,
        method: Method,
        loader: Loader,
        name: str,
        epochs: float,
        optimizer: Callable | None = None,
        schedule: Callable | None = None,
    ) -> Fit:
        """Train for `epochs`, with the run's optimizer and schedule where no other is given."""
        engine = Engine(self.engine.model_copy(update={"epochs": epochs}), self.run)
        constructors = optimizer or self.optimizer, schedule or self.schedule
        return engine.fit(method, loader, *constructors, name=self.folder + name)
