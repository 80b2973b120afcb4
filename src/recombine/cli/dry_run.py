"""`--dry-run`: the jobs of a command, which of them are done, and how long the others may take."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any, NamedTuple

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep
from hydra.types import RunMode
from omegaconf import DictConfig
from rich.table import Table

from recombine.cli.downloads import missing_weights, show_sizes
from recombine.cli.slots import places
from recombine.run.config import run_folder
from recombine.run.console import show

__all__ = ["last_metrics", "plan", "show_plan", "show_search"]


class Planned(NamedTuple):
    """A job as it would run."""

    words: list[str]
    cfg: DictConfig
    folder: Path
    state: str
    """done, to do, or how it failed."""
    seconds: float | None
    """How long it took."""


def show_plan(jobs: Sequence[Planned]) -> None:
    """Print the jobs, an estimate from those that are done or else from all runs, and what they download."""
    table = Table("job", "state", "time", "settings", box=None)
    varied = [word for word in jobs[0].words if any(word not in job.words for job in jobs)]
    keys = {word.partition("=")[0] for word in varied}
    for number, job in enumerate(jobs):
        words = [word for word in job.words if word.partition("=")[0] in keys] or [job.folder.name]
        time = "" if job.seconds is None else _duration(job.seconds)
        table.add_row(str(number), job.state, time, " ".join(words))
    show(table)
    left = [job for job in jobs if job.state != "done"]
    measured = [job.seconds for job in jobs if job.seconds is not None and job.state == "done"]
    each = mean(measured) if measured else _typical(jobs[0].folder.parent)
    planned = f"{len(jobs)} job{'s' * (len(jobs) != 1)}"
    print(f"{planned}: {len(jobs) - len(left)} done, {len(left)} to run; {_estimate(each, len(left))}")
    if missing := missing_weights(job.cfg for job in left):
        show_sizes(missing)


def _estimate(each: float | None, left: int) -> str:
    if not left or each is None:
        return "nothing is left" if not left else "no finished run says how long one takes"
    side = places()
    text = f"about {_duration(each)} each, {_duration(each * left)} one after the other"
    return text + (f", {_duration(each * -(-left // side))} by {side} at once" if side > 1 else "")


def plan(entry: str, config_dir: str, config_name: str, overrides: Sequence[str], *, sweep: bool) -> Iterator[Planned]:
    """Every job of a command with what is there of it."""
    with initialize_config_dir(config_dir, version_base="1.3"):
        singles = [text for text in overrides if not OverridesParser.create().parse_override(text).is_sweep_override()]
        hydra = compose(config_name, singles, return_hydra_config=True).hydra
        if _by_optuna(hydra):
            overrides = [_first_value(text) for text in overrides]
        jobs: Sequence[Sequence[str]] = [list(overrides)]
        if sweep or hydra.mode == RunMode.MULTIRUN:
            params = [f"{key}={value}" for key, value in (hydra.sweeper.get("params") or {}).items()]
            loader = GlobalHydra.instance().config_loader()  # knows what glob(*) means
            parsed = OverridesParser.create(config_loader=loader).parse_overrides([*params, *overrides])
            jobs = BasicSweeper.split_arguments(parsed, max_batch_size=None)[0]
        for words in jobs:
            cfg = compose(config_name, list(words))
            yield _planned(entry, cfg, list(words))


def show_search(entry: str, config_dir: str, config_name: str, overrides: Sequence[str]) -> bool:
    """Print the trials of a search and an estimate; False if the command is another kind of sweep."""
    with initialize_config_dir(config_dir, version_base="1.3"):
        parser = OverridesParser.create()
        singles = [text for text in overrides if not parser.parse_override(text).is_sweep_override()]
        hydra = compose(config_name, singles, return_hydra_config=True).hydra
    if not _by_optuna(hydra):
        return False
    from recombine.cli.optuna_sweeper import planned  # which not everybody has

    trials = planned(entry, hydra.sweeper, [text for text in overrides if not text.lstrip("+~").startswith("hydra")])
    table = Table("trial", "state", "value", "time", "settings", box=None)
    for trial in trials:
        value = "" if trial.value is None else f"{trial.value:.4g}"
        words = " ".join(f"{key}={setting}" for key, setting in trial.params.items())
        seconds = "" if trial.duration is None else _duration(trial.duration.total_seconds())
        table.add_row(str(trial.number), trial.state.name.lower(), value, seconds, words)
    show(table)
    times = [trial.duration.total_seconds() for trial in trials if trial.duration is not None]
    left, each = max(0, hydra.sweeper.n_trials - len(trials)), mean(times) if times else None
    print(f"{hydra.sweeper.n_trials} trials: {len(trials)} done, {left} to run; {_estimate(each, left)}")
    return True


def _by_optuna(hydra: DictConfig) -> bool:
    return str(hydra.sweeper._target_).rpartition(".")[2] == "Optuna"


def _first_value(text: str) -> str:
    """An override with the lower end of an interval in place of it: for what does not depend on the value."""
    value: Any = (parsed := OverridesParser.create().parse_override(text)).value()
    return f"{parsed.key_or_group}={value.start}" if isinstance(value, IntervalSweep) else text


def _planned(entry: str, cfg: DictConfig, words: list[str]) -> Planned:
    folder = run_folder(entry, cfg)
    found = _read(folder / "row.json")
    if not found:
        return Planned(words, cfg, folder, "to do", None)
    states = [row["status"] for row in found if row["status"] != "ok"]
    return Planned(words, cfg, folder, states[0] if states else "done", _seconds(found))


def _read(file: Path) -> list[dict[str, Any]]:
    """Rows of a file without the checks of `read_rows`, which would import torch."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return [{**content["shared"], **row} for row in content["rows"]]
    except (OSError, ValueError, KeyError):
        return []


def last_metrics(folder: Path) -> dict[str, float]:
    """The metrics of the last row of a run, nothing if it has none."""
    rows = _read(folder / "row.json")
    return rows[-1]["metrics"] if rows else {}


def _seconds(rows: Sequence[dict[str, Any]]) -> float | None:
    return next((row["provenance"]["seconds"] for row in rows if "seconds" in row.get("provenance", {})), None)


def _typical(folder: Path) -> float | None:
    """The median time of the finished runs below a folder."""
    found = [_read(file) for file in folder.glob("*/row.json")]
    times = [_seconds(rows) for rows in found if rows and all(row["status"] == "ok" for row in rows)]
    known = [time for time in times if time is not None]
    return median(known) if known else None


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
