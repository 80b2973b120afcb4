"""Run: one configured job, from a composed config to its rows.

Exit codes of every command: 0 ok; 1 failed; 2 config problem; 3 another process holds the run directory; 4 diverged;
128 + signal number when stopped (130 Ctrl-C, 143 SIGTERM, 138 SIGUSR1), after the state was saved. A multirun ends
with the code of its first failing job.
"""

from __future__ import annotations

import os
import random
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from src.core import distributed, provenance
from src.core.config import identify, plain, validate
from src.core.console import show_rows
from src.core.errors import ConfigError, Diverged, Interrupted, RecombineError
from src.core.directory import finished, locked, prepare
from src.core.results import write_atomically, write_rows
from src.core.signals import StopSignals
from src.core.tracking import Tracker
from src.core.types import Row

__all__ = ["Run", "check", "exit_code", "launch"]

RESUME = ("auto", "never", "must")


@dataclass
class Run:
    """One configured job: its directory, seed, device, rank and tracker."""

    dir: Path
    """Where everything of this run is written; only rank 0 writes."""
    id: str
    """Name of the directory; ends in the hash of the config."""
    group: str
    """Shared by runs that differ only in the seed."""
    entry: str
    seed: int
    device: torch.device
    tracker: Tracker
    signals: StopSignals
    cache: Path
    """For what can be computed again and shared by runs."""
    rank: int = 0
    world: int = 1
    resume: str = "auto"
    """auto: continue if there is something; never: the directory was emptied; must: there is something."""
    stats: dict[str, Any] = field(default_factory=dict)
    """Facts for the provenance, such as `images_per_second`; filled by whoever measures them."""

    @property
    def main(self) -> bool:
        """Whether this process is the one that writes and prints."""
        return self.rank == 0

    def stop_requested(self) -> int | None:
        """The number of the signal that asked to stop, if one did; whoever sees it saves and raises Interrupted."""
        return self.signals.received


def exit_code(error: BaseException | None) -> int:
    """The code a command ends with after `error` (None: success)."""
    if isinstance(error, RecombineError):
        return error.exit_code
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    return 0 if error is None else 130 if isinstance(error, KeyboardInterrupt) else 1


def entry_name(recipe: ModuleType) -> str:
    """`src.flips.recipe` is the entry `flips`; `src.transfer.multi_teacher` is `multi_teacher`."""
    *_, package, module = f".{recipe.__name__}".split(".")
    return package if module == "recipe" and package else module


def check(recipe: ModuleType, cfg: DictConfig) -> list[str]:
    """Every problem of a composed config that shows before data are opened or a device is touched."""
    problems = validate(cfg)
    resume = OmegaConf.select(cfg, "engine.resume", default="auto")
    if resume not in RESUME:
        problems.append(f"engine.resume={resume}: one of {', '.join(RESUME)} is needed")
    if not any(": a value is needed" in problem for problem in problems):
        problems += Tracker.check(cfg.get("wandb") or {})
        problems += recipe.check(cfg) if hasattr(recipe, "check") else []
    return list(dict.fromkeys(problems))


def launch(recipe: str | ModuleType, cfg: DictConfig, command: str | None = None) -> float | None:
    """Run `recipe` as `cfg` says, or show its rows if that was done before; returns the objective for sweepers.

    The recipe module has `run(cfg, run) -> Iterator[Row]`, and may have `check(cfg) -> list[str]`, `cell(cfg) -> dict`
    (names the cell of a failed run), `published(row) -> dict` and `OBJECTIVE` (name of a metric).
    Raises ConfigError for everything `check` finds, LockedError if the run is in work elsewhere, Interrupted after a
    signal, and whatever the recipe raises, once it is written into a row, a traceback file and the tracker.
    """
    recipe = import_module(recipe) if isinstance(recipe, str) else recipe
    problems = check(recipe, cfg)
    if problems:
        raise ConfigError(problems)
    entry = entry_name(recipe)
    folder = Path(cfg.output_root) / entry / identify(cfg, entry).run
    resume = OmegaConf.select(cfg, "engine.resume", default="auto")
    main = int(os.environ.get("RANK", 0)) == 0
    with locked(folder) if main else nullcontext(), StopSignals() as signals:
        rows = finished(folder) if resume != "never" else None
        if rows is None:
            if main:
                prepare(folder, OmegaConf.to_yaml(cfg, resolve=True), resume)
            rows = _execute(recipe, cfg, signals, folder, command)
        elif main:
            print(f"finished before (engine.resume=never runs it again): {folder}")
        if main:
            show_rows(rows, folder, getattr(recipe, "published", None))
        if signals.received:
            # Nothing of this run is lost, but the jobs of a multirun that follow must not start.
            raise Interrupted(signals.received)
    return rows[-1].metrics.get(getattr(recipe, "OBJECTIVE", "")) if rows else None


def _execute(recipe: ModuleType, cfg: DictConfig, signals: StopSignals, folder: Path, command: str | None) -> list[Row]:
    facts = {"command": command, "config": plain(cfg), **provenance.commit(), "versions": provenance.versions()}
    with _device(cfg) as (device, rank, world):
        _seed(cfg.seed)
        watch = provenance.Stopwatch(device)
        run = _open(recipe, cfg, signals, folder, device, rank, world, facts)
        rows: list[Row] = []
        error: BaseException | None = None
        try:
            for row in recipe.run(cfg, run):
                rows.append(row)
        except BaseException as raised:
            error = raised
            rows.append(_failed(recipe, cfg, raised))
            raise
        finally:
            facts |= {"device": provenance.device_name(device), "world_size": world, **watch.read(), **run.stats}
            rows = [
                replace(row, entry=run.entry, seed=run.seed, run=run.id, group=run.group, provenance=facts)
                for row in rows
            ]
            _close(run, rows, error)
    return rows


def _open(
    recipe: ModuleType,
    cfg: DictConfig,
    signals: StopSignals,
    folder: Path,
    device: torch.device,
    rank: int,
    world: int,
    facts: dict[str, Any],
) -> Run:
    entry = entry_name(recipe)
    identity = identify(cfg, entry)
    tracker = Tracker.silent()
    if rank == 0:
        choices = (OmegaConf.select(cfg, f"{group}.name") for group in ("method", "dataset"))
        tracker = Tracker.open(
            folder,
            cfg.get("wandb") or {},
            name=identity.run,
            group=identity.group,
            job_type=entry,
            tags=[
                entry,
                *(str(choice)[:64] for choice in choices if choice),
                *(cfg.get("wandb") or {}).get("tags", []),
            ],
            config={**facts["config"], "provenance": {k: v for k, v in facts.items() if k != "config"}},
        )
    return Run(
        dir=folder,
        id=identity.run,
        group=identity.group,
        entry=entry,
        seed=cfg.seed,
        device=device,
        tracker=tracker,
        signals=signals,
        cache=Path(cfg.cache_root),
        rank=rank,
        world=world,
        resume=OmegaConf.select(cfg, "engine.resume", default="auto"),
    )


@contextmanager
def _device(cfg: DictConfig) -> Iterator[tuple[torch.device, int, int]]:
    """The device of this process, its rank and the world size; leaves the process group afterwards."""
    if OmegaConf.select(cfg, "engine.deterministic", default=False):
        # cuBLAS reads this once, when CUDA starts.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    name = cfg.get("device", "auto")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    elif name.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(
            f"device={name}: this machine offers no CUDA device to torch {torch.__version__}; device=auto"
        )
    if name == "cuda":
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    device = torch.device(name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    rank, world = distributed.init(device)
    try:
        yield device, rank, world
    finally:
        distributed.shutdown()


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def _failed(recipe: ModuleType, cfg: DictConfig, error: BaseException) -> Row:
    stopped = isinstance(error, Interrupted | KeyboardInterrupt)
    status = "interrupted" if stopped else "diverged" if isinstance(error, Diverged) else "failed"
    cell = recipe.cell(cfg) if hasattr(recipe, "cell") else {}
    text = str(error) if isinstance(error, RecombineError) else f"{type(error).__name__}: {error}"
    return Row(cell=cell, status=status, error=text.strip())


def _close(run: Run, rows: list[Row], error: BaseException | None) -> None:
    """Leave what the run found, or how it failed, in its folder and with the tracker."""
    if run.main:
        write_rows(run.dir, rows)
        if error is not None:
            write_atomically(run.dir / "traceback.txt", "".join(traceback.format_exception(error)))
    if len(rows) == 1:
        run.tracker.summary({**rows[0].metrics, "status": rows[0].status})
    elif rows:
        names = list(dict.fromkeys(name for row in rows for name in (*row.cell, *row.metrics)))
        run.tracker.table("rows", names, [[{**row.cell, **row.metrics}.get(name) for name in names] for row in rows])
    run.tracker.finish(exit_code(error))
