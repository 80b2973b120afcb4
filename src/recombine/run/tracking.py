"""What happens during a run: always as JSON lines in its folder, and with the logger that the config names."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, Protocol, TextIO

import torch
from torch import Tensor

from recombine.core.errors import RecombineError
from recombine.core.types import Row
from recombine.run.lineage import RunArtifact
from recombine.run.search_trial import SearchTrial

__all__ = ["Logger", "Tracker", "final_values"]

MOST_ROWS = 16
"""Rows of a run that have final values each."""
LOGGERS = {
    "wandb": "recombine.run.wandb_logger:WandbLogger",
    "tensorboard": "recombine.run.tensorboard_logger:TensorBoardLogger",
}
"""`logger.name` -> class, made with the run's folder, the node `logger`, and name, group, job_type, tags and config."""


class Logger(Protocol):
    """A service that shows runs. Its methods may raise: `Tracker` keeps that from the run."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Points of curves at an optimizer step."""

    def summary(self, values: Mapping[str, Any]) -> None:
        """Final values."""

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A table."""

    def image(self, name: str, path: Path, caption: str) -> None:
        """A picture file."""

    def artifacts(self, artifacts: Iterable[RunArtifact]) -> None:
        """What the run read and wrote."""

    def alert(self, title: str, text: str) -> None:
        """A message that somebody should read soon."""

    def finish(self, exit_code: int) -> None:
        """The end; the run failed unless `exit_code` is 0."""


class Tracker:
    """Records values, tables, pictures and artifacts of one run.

    `metrics.jsonl` is the source of truth. Trouble of the logger, network or disk is reported once and then ignored:
    it never stops or changes a run.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.lines: TextIO | None = None
        self.logger: Logger | None = None
        self.name = "logger"
        self.reported: set[str] = set()
        self.trial: SearchTrial | None = None
        self.stage = ""
        if folder is not None:
            self._guard("metrics.jsonl", self._open_lines)

    @classmethod
    def silent(cls) -> Tracker:
        """A tracker that records nothing: for the ranks beside the first."""
        return cls(None)

    def within(self, stage: str) -> Tracker:
        """This tracker for one of several stages: of cross2, `search/accuracy` is `search/cross2/accuracy`."""
        tracker = copy(self)
        tracker.stage = f"{self.stage}{stage}/"
        return tracker

    @classmethod
    def open(cls, folder: Path, settings: Mapping[str, Any], **run: Any) -> Tracker:
        """A tracker writing into `folder`; `settings` is the node `logger` of the config.

        `run` describes the run to the logger (name, group, job_type, tags, config).
        """
        tracker = cls(folder)
        name = settings.get("name", "none")
        if name == "none" or (name == "wandb" and _mode(settings) == "disabled"):
            return tracker

        def start() -> None:
            tracker.logger = resolve_name(LOGGERS[name])(folder, settings, run)

        tracker.name = name
        tracker._guard(name, start)
        return tracker

    def log(self, values: Mapping[str, float | Tensor], step: int, prefix: str = "") -> None:
        """Record 0-d tensors and numbers at optimizer step `step`; tensors come to the host in one copy.

        Raises Pruned if a hyper-parameter search stops the run that reports this.
        """
        if self.folder is None:
            return
        numbers = {self._staged(f"{prefix}{name}"): value for name, value in _on_host(values).items()}
        self._guard("metrics.jsonl", lambda: self._write_line({"step": step, **numbers}))
        self._send(lambda logger: logger.log(numbers, step))
        if self.trial is not None:
            self.trial.report(numbers, step)

    def summary(self, values: Mapping[str, Any]) -> None:
        """Record final numbers, under `final/`."""
        final = {f"final/{name}": value for name, value in values.items()}
        self._guard("metrics.jsonl", lambda: self._write_line(final))
        self._send(lambda logger: logger.summary(final))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Show a table."""
        self._send(lambda logger: logger.table(f"{self.stage}{name}", columns, rows))

    def image(self, name: str, path: Path, caption: str = "") -> None:
        """Show the picture file `path`."""
        self._send(lambda logger: logger.image(f"{self.stage}{name}", path, caption))

    def artifacts(self, artifacts: Iterable[RunArtifact]) -> None:
        """Store what the run read and wrote; the files must stay as they are."""
        self._send(lambda logger: logger.artifacts(artifacts))

    def alert(self, title: str, text: str) -> None:
        """Send a message to whoever watches."""
        self._send(lambda logger: logger.alert(title, text))

    def finish(self, exit_code: int = 0) -> None:
        """Close everything; the run is shown as failed unless `exit_code` is 0. May be called twice."""
        self._send(lambda logger: logger.finish(exit_code))
        self.logger = None
        self._guard("metrics.jsonl", lambda: self.lines and self.lines.close())
        self.lines = None

    def _staged(self, name: str) -> str:
        section, slash, rest = name.partition("/")
        return f"{section}/{self.stage}{rest}" if slash else f"{self.stage}{name}"

    def _send(self, action: Callable[[Logger], Any]) -> None:
        logger = self.logger
        if logger is not None:
            self._guard(self.name, lambda: action(logger))

    def _guard(self, what: str, action: Callable[[], Any]) -> None:
        try:
            action()
        except RecombineError:  # a signal that stops the run
            raise
        except Exception as error:
            # Whatever a logging service raises, the run is worth more than its log.
            if what not in self.reported:
                print(f"{what}: {type(error).__name__}: {error}; the run goes on without it", file=sys.stderr)
            self.reported.add(what)

    def _open_lines(self) -> None:
        assert self.folder is not None
        path = self.folder / "metrics.jsonl"
        torn = path.exists() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
        self.lines = lines = path.open("a", encoding="utf-8", buffering=1)
        if torn:
            lines.write("\n")

    def _write_line(self, values: dict[str, Any]) -> None:
        if self.lines is not None:
            self.lines.write(json.dumps(values, default=str) + "\n")


def _on_host(values: Mapping[str, float | Tensor]) -> dict[str, float]:
    tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
    numbers = {name: value for name, value in values.items() if not isinstance(value, Tensor)}
    if tensors:
        stacked = torch.stack([value.detach().double().reshape(()) for value in tensors.values()])
        numbers.update(zip(tensors, stacked.tolist(), strict=True))
    return {name: numbers[name] for name in values}


def final_values(rows: Sequence[Row], objective: str) -> dict[str, Any]:
    """What a run's rows come to: `objective`, `status`, and each metric; of several rows `<row>/<metric>`.

    A row among several is named by what distinguishes it. Of many, it is the mean, minimum and maximum of a metric.
    """
    broken = [row.status for row in rows if row.status != "ok"]
    values: dict[str, Any] = {"status": (broken or ["ok"])[0]}
    if rows and objective in rows[-1].metrics:
        values["objective"] = rows[-1].metrics[objective]
    if len(rows) == 1:
        return {**rows[0].metrics, **values}
    if len(rows) <= MOST_ROWS:
        keys = dict.fromkeys(key for row in rows for key in row.cell)
        differ = [key for key in keys if len({str(row.cell.get(key)) for row in rows}) > 1]
        for row in rows:
            name = "-".join(str(row.cell[key]) for key in differ if key in row.cell) or "all"
            values |= {f"{name}/{metric}": value for metric, value in row.metrics.items()}
        return values
    for metric in dict.fromkeys(metric for row in rows for metric in row.metrics):
        found = [row.metrics[metric] for row in rows if metric in row.metrics]
        values |= {f"{metric}/mean": sum(found) / len(found), f"{metric}/min": min(found), f"{metric}/max": max(found)}
    return values


def _mode(settings: Mapping[str, Any]) -> str:
    """`logger.mode`; WANDB_MODE goes before."""
    return os.environ.get("WANDB_MODE") or settings.get("mode", "auto")
