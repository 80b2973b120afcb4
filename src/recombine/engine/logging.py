"""The course of a fit: its length, its records, and what a person sees of it."""

from __future__ import annotations

import logging
import math
import re
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from recombine.engine.metric_buffer import MetricBuffer

if TYPE_CHECKING:
    from recombine.run.tracking import Tracker

__all__ = ["MetricLogger", "ProgressBar", "StepPlan", "line_of"]

logger = logging.getLogger(__name__)
WIDTH = 108
"""Characters of an epoch's line: with the name of a job before it, it fits 120 columns."""
ONLY_FIT = ("fit", "transfer")
"""Names of a fit that is the only one of its run."""


@dataclass(frozen=True)
class StepPlan:
    """How batches make optimizer steps and steps make epochs; a step never spans two epochs."""

    batches: int
    """Per epoch."""
    batch_size: int
    """Over all processes."""
    grad_accum_steps: int
    """Batches per step; the last step of an epoch takes what is left."""
    epochs: float
    max_steps: int | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps."""
        return math.ceil(self.batches / self.grad_accum_steps)

    @property
    def total(self) -> int:
        """Optimizer steps of the whole fit."""
        steps = math.ceil(self.epochs * self.steps_per_epoch - 1e-9)  # 0.1 * 30 is 3, not 4
        return steps if self.max_steps is None else min(steps, self.max_steps)

    def epoch(self, step: int) -> int:
        """Number of the epoch `step` belongs to."""
        return step // self.steps_per_epoch

    def first_batch(self, step: int) -> int:
        """Position in its epoch of the first batch of `step`."""
        return step % self.steps_per_epoch * self.grad_accum_steps

    def parts(self, step: int) -> int:
        """Batches of `step`."""
        return min(self.grad_accum_steps, self.batches - self.first_batch(step))

    def epoch_end(self, step: int) -> int:
        """The step at which the epoch of `step`, or the fit, is over."""
        return min(self.total, (self.epoch(step) + 1) * self.steps_per_epoch)

    def images(self, step: int) -> int:
        """Images seen before `step`."""
        return (self.epoch(step) * self.batches + self.first_batch(step)) * self.batch_size


class ProgressBar:
    """A progress bar with images/s and time left on a terminal, one log line per epoch elsewhere."""

    refresh_seconds = 0.2

    def __init__(self, name: str, total: int, shown: bool) -> None:
        self.name, self.shown = name, shown
        self.bar: Progress | None = None
        self.moved: list[tuple[logging.StreamHandler, Any]] = []
        self.refreshed = 0.0
        if shown and sys.stderr.isatty():
            numbers = TextColumn("{task.fields[numbers]}", markup=False)
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                numbers,
                TimeRemainingColumn(),
            )
            console = Console(stderr=True)
            self.bar = Progress(*columns, console=console, transient=True, redirect_stdout=sys.stdout.isatty())
            self.task = self.bar.add_task(name, total=total, numbers="")

    def __enter__(self) -> ProgressBar:
        if self.bar:
            before = sys.stdout, sys.stderr
            self.bar.start()
            self._above_the_bar(*before)
        return self

    def __exit__(self, *_: object) -> None:
        for handler, stream in self.moved:
            handler.setStream(stream)
        self.moved = []
        if self.bar:
            self.bar.stop()

    def _above_the_bar(self, *screens: Any) -> None:
        """Let log lines appear above the bar: handlers hold the streams of before, on which they would end up in it."""
        now = dict(zip(screens, (sys.stdout, sys.stderr), strict=True))
        for handler in logging.root.handlers:
            if isinstance(handler, logging.StreamHandler) and now.get(handler.stream, handler.stream) != handler.stream:
                self.moved.append((handler, handler.stream))
                handler.setStream(now[handler.stream])

    def advance(self, step: int) -> None:
        """Show that `step` steps are done; costs a clock reading unless the bar is due."""
        if self.bar and time.monotonic() - self.refreshed > self.refresh_seconds:
            self.refreshed = time.monotonic()
            self.bar.update(self.task, completed=step)

    def numbers(self, values: Mapping[str, float]) -> None:
        """Show the loss and the speed of a log point beside the bar."""
        if self.bar:
            self.bar.update(self.task, numbers=_text(values, ("loss", "images/s")))

    def line(self, record: Mapping[str, float]) -> None:
        """Report a finished epoch, as much of it as fits into a line."""
        if self.shown:
            logger.info("%s", line_of(self.name, record))


class MetricLogger:
    """The numbers of a fit: read at log points, averaged per epoch, shown and given to the tracker."""

    def __init__(self, name: str, plan: StepPlan, tracker: Tracker, shown: bool) -> None:
        self.name, self.plan, self.tracker = name, plan, tracker
        self.display = ProgressBar(name, plan.total, shown)
        self.interval = MetricBuffer()
        self.history: list[dict[str, float]] = []
        self.reported = 0
        self.read_step = 0
        self.sums: dict[str, list[float]] = {}
        self.seconds = self.read_seconds = 0.0
        self.start_clock()

    def start_clock(self) -> None:
        """Count the time from here on as training."""
        self.clock = time.perf_counter()

    def stop_clock(self) -> None:
        """Count the time up to here as training, and go on counting."""
        now = time.perf_counter()
        self.seconds, self.clock = self.seconds + now - self.clock, now

    def read(self, step: int, lr: float) -> None:
        """A log point: fetch, check and record what happened since the last one. Raises NotFinite."""
        means = self.interval.read()
        self.stop_clock()
        steps, images = step - self.read_step, self.plan.images(step) - self.plan.images(self.read_step)
        speed = images / (self.seconds - self.read_seconds)
        self.read_step, self.read_seconds = step, self.seconds
        for name, value in means.items():
            total, count = self.sums.get(name, (0.0, 0))
            self.sums[name] = [total + value * steps, count + steps]
        values = {f"train/{name}": value for name, value in means.items()}
        course = {"train/epoch": step / self.plan.steps_per_epoch, "train/lr": lr, "time/images_per_second": speed}
        self._log(step, {**course, **values})
        self.display.numbers({**means, "images/s": speed})

    def end_epoch(self, step: int, lr: float) -> None:
        """Write the record of an epoch."""
        means = {f"train/{name}": total / count for name, (total, count) in self.sums.items()}
        self.sums = {}
        self._record(step).update({"lr": lr, **means})

    def evaluated(self, step: int, metrics: Mapping[str, float], section: str) -> None:
        """Add the metrics measured after `step`, in `section`: test, of test images, or val."""
        measured = {f"{section}/{name}": value for name, value in metrics.items()}
        self._record(step).update(measured)
        self._log(step, measured)

    def report(self) -> None:
        """Show the epochs that were not shown yet."""
        for record in self.history[self.reported :]:
            self.display.line({**record, "images/s": self.images_per_second})
        self.reported = len(self.history)

    @property
    def images_per_second(self) -> float:
        """Training speed over the whole fit and all processes."""
        return self.plan.images(self.read_step) / self.read_seconds if self.read_seconds else 0.0

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps; the interval is kept by each process."""
        names = ("history", "read_step", "sums", "seconds", "read_seconds")
        return {name: getattr(self, name) for name in names}

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint."""
        for name, value in state.items():
            setattr(self, name, value)
        self.reported = len(self.history)

    def _record(self, step: int) -> dict[str, float]:
        if not self.history or self.history[-1]["step"] != step:
            self.history.append({"epoch": step / self.plan.steps_per_epoch, "step": step})
        return self.history[-1]

    def _log(self, step: int, values: Mapping[str, float]) -> None:
        """Hand values to the tracker: `train/loss`, and of a fit among several `train/<fit>/loss`.

        The section comes first, so that runs of different entries share their charts.
        """
        parts = ((*name.partition("/"), value) for name, value in values.items())
        fit = "" if self.name in ONLY_FIT else f"{self.name}/"
        self.tracker.log({f"{section}/{fit}{rest}": value for section, _, rest, value in parts}, step=step)


def line_of(name: str, record: Mapping[str, float], width: int = WIDTH) -> str:
    """An epoch in one line: what was measured before what was trained; of what does not fit, `...` is left."""
    first = ("epoch", "val/", "test/", "train/loss", "images/s")
    order = sorted(record, key=lambda key: [not key.startswith(start) for start in first])
    names = {key: re.sub("^(val|test)/", r"\1 ", key.removeprefix("train/")) for key in order}
    parts = [f"{names[key]} {_number(record[key])}" for key in order if key != "step"]
    line = f"{name}:"
    for part in parts:
        if len(line) + len(part) + 2 > width - 4:
            return f"{line} ..."
        line += f" {part} " if part != parts[-1] else f" {part}"
    return line


def _text(values: Mapping[str, float], names: Iterable[str]) -> str:
    return "  ".join(f"{name} {_number(values[name])}" for name in names if name in values)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:,.4g}"
