"""From a composed config to the rows of its run.

Exit codes of every command: 0 ok; 1 failed; 2 config problem; 3 another process holds the run directory; 4 diverged;
128 + signal number when stopped (130 Ctrl-C, 143 SIGTERM, 138 SIGUSR1, 140 SIGUSR2), after the state was saved. A
multirun ends with the code of its first failing job.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from omegaconf import DictConfig, OmegaConf

from recombine.core.errors import ConfigError, Diverged, Interrupted, Pruned, RecombineError, exit_code_of
from recombine.core.files import write_atomically, writing
from recombine.core.inputs import Manifest, collecting
from recombine.core.random_state import seed_everything
from recombine.core.results import write_rows
from recombine.core.types import Row
from recombine.run import provenance
from recombine.run.config import RunId, entry_name, run_id, validate
from recombine.run.console import first_rank, show_rows
from recombine.run.device import open_device, resolve
from recombine.run.directory import discard, finished, is_untouched, locked, note_files, prepare, release
from recombine.run.lineage import code_artifact, list_artifacts
from recombine.run.memory import explain_memory
from recombine.run.run import Run
from recombine.run.search_trial import SearchTrial
from recombine.run.settings import EntrySettings
from recombine.run.shown import manifest_of, note_shown, tell_finished
from recombine.run.signals import StopSignals, finishing
from recombine.run.tracking import Tracker, final_values

__all__ = ["check", "launch", "record_problems"]


def check(recipe: ModuleType, cfg: DictConfig) -> list[str]:
    """Every problem of a composed config that shows before data are opened or a device is touched."""
    problems = validate(cfg, getattr(recipe, "SETTINGS", EntrySettings))
    if hasattr(recipe, "check") and not problems:
        problems = recipe.check(cfg)
    return list(dict.fromkeys(problems))


def launch(
    recipe: str | ModuleType, cfg: DictConfig, command: str | None = None, labels: Mapping[str, str] | None = None
) -> float | None:
    """Run `recipe` as `cfg` says, or show its rows if that was done before; returns the objective for sweepers.

    `labels` say what the run belongs to (experiment, table, sweep): for its provenance and the tags of its logger.

    The recipe module has `run(cfg, run) -> Iterator[Row]` and SETTINGS, the class that declares its config, and may
    have `check(cfg) -> list[str]`, `cell(cfg) -> dict`
    (names the cell of a failed run), `published(row) -> dict`, `OBJECTIVE` (name of a metric) or
    `objective(cfg) -> str`, `HEADLINE` (metrics that are printed) and
    `files(cfg) -> list[Path]` (what it reads or leaves outside its folder: if these change, it is not done any more).
    Raises ConfigError for everything `check` finds, LockedError if the run is in work elsewhere, Interrupted after a
    signal, and whatever the recipe raises, once it is written into a row, a traceback file and the tracker.
    """
    job = _Job(import_module(recipe) if isinstance(recipe, str) else recipe, cfg, command, labels or {})
    problems = check(job.recipe, cfg)
    if problems:
        raise ConfigError(problems)
    with locked(job.folder) if first_rank() else nullcontext(), StopSignals() as signals:
        stale = job.stale() if job.resume != "never" else []
        rows = finished(job.folder, job.files()) if job.resume != "never" and not stale else None
        if rows is None:
            if first_rank():
                _tell(stale, job)
                resume = "never" if stale else job.resume
                with finishing():
                    prepare(job.folder, OmegaConf.to_yaml(cfg, resolve=True), resume)
            rows = _execute(job, signals)
            if first_rank():
                note_files(job.folder, job.files())
                note_shown(job.folder, rows, job.headline, job.objective, job.published)
        elif first_rank():
            tell_finished(job.folder)
        if first_rank():
            show_rows(rows, job.folder, job.published, job.headline)
        if signals.received:
            # Nothing of this run is lost, but the jobs of a multirun that follow must not start.
            raise Interrupted(signals.received)
    return rows[-1].metrics.get(job.objective) if rows else None


def _tell(stale: list[str], job: _Job) -> None:
    """Say what a run read that is not what it was; ConfigError if it is to be continued all the same."""
    if not stale:
        return
    if job.resume == "must":
        raise ConfigError([f"engine.resume=must: {job.folder} was made of other inputs", *stale])
    print(f"starts anew, as its inputs have changed: {job.folder} (what was there is in its folder 'previous')")
    print("\n".join(f"  {text}" for text in stale))


def record_problems(recipe: str, cfg: DictConfig, command: str, error: ConfigError) -> None:
    """Leave a failed row for a config that `launch` refused, unless its directory holds rows already."""
    job = _Job(import_module(recipe), cfg, command)
    if first_rank() and not (job.folder / "row.json").exists():
        write_rows(job.folder, [job.complete(job.failed(error), job.record())])


class _Job:
    """A recipe with its config: what is known of a run before it starts."""

    def __init__(
        self, recipe: ModuleType, cfg: DictConfig, command: str | None, labels: Mapping[str, str] | None = None
    ) -> None:
        self.recipe = recipe
        self.cfg = cfg
        self.command = command
        self.labels = dict(labels or {})
        self.objective = recipe.objective(cfg) if hasattr(recipe, "objective") else getattr(recipe, "OBJECTIVE", "")
        self.entry = entry_name(recipe.__name__)
        self.resume = OmegaConf.select(cfg, "engine.resume", default="auto")
        self.made = [above for above in list(self.folder.parents)[:2] if not above.exists()]  # output_root/<entry>
        self.headline, self.published = getattr(recipe, "HEADLINE", ()), getattr(recipe, "published", None)

    @cached_property
    def identity(self) -> RunId:
        return run_id(self.cfg, self.entry)

    @property
    def folder(self) -> Path:
        return Path(self.cfg.output_root) / self.entry / self.identity.run

    @cached_property
    def manifest(self) -> Manifest:
        """What the run reads, noted by the first rank."""
        return manifest_of(self.cfg, self.folder if first_rank() else None)

    def stale(self) -> list[str]:
        """What this run read, finished or not, that is no longer as it was."""
        return self.manifest.changes(self.folder, verify=bool(self.cfg.get("verify_inputs", False)))

    def files(self) -> list[Path]:
        return self.recipe.files(self.cfg) if hasattr(self.recipe, "files") else []

    def record(self) -> dict[str, Any]:
        code = {**provenance.commit(), "versions": provenance.versions()}
        return {
            "command": self.command,
            **self.labels,
            "config": OmegaConf.to_container(self.cfg, resolve=True),
            **code,
        }

    def failed(self, error: BaseException) -> Row:
        stopped = isinstance(error, Interrupted | Pruned | KeyboardInterrupt)
        status = "interrupted" if stopped else "diverged" if isinstance(error, Diverged) else "failed"
        cell = self.recipe.cell(self.cfg) if hasattr(self.recipe, "cell") else {}
        text = str(error) if isinstance(error, RecombineError) else f"{type(error).__name__}: {error}"
        return Row(cell=cell, status=status, error=text.strip())

    def complete(self, row: Row, record: dict[str, Any]) -> Row:
        run, group, _ = self.identity
        return replace(row, entry=self.entry, seed=self.cfg.seed, run=run, group=group, provenance=record)

    def tracker(self, record: dict[str, Any]) -> Tracker:
        settings = self.cfg.get("logger") or {}
        choices = [OmegaConf.select(self.cfg, f"{group}.name") for group in ("method", "dataset")]
        commit = f"git-{record['commit'][:12]}" if "commit" in record else f"version-{record['version']}"
        tags = [self.entry, *choices, *self.labels.values(), commit, *(settings.get("tags") or [])]
        code = {key: value for key, value in record.items() if key != "config"}
        return Tracker.open(
            self.folder,
            settings,
            name=self.identity.run,
            group=self.identity.group,
            job_type=self.entry,
            tags=list(dict.fromkeys(str(tag)[:64] for tag in tags if tag)),
            config={**record["config"], "provenance": code},
        )


def _execute(job: _Job, signals: StopSignals) -> list[Row]:
    record = job.record()
    deterministic = OmegaConf.select(job.cfg, "engine.deterministic", default=False)
    rows: list[Row] = []
    error: BaseException | None = None
    with open_device(job.cfg.get("device", "auto"), deterministic=deterministic) as (device, rank, world):
        settings = record["config"].get("engine") or {}
        for key in settings.keys() & {"precision", "eval_precision"}:
            settings[key] = resolve(settings[key], device)  # what was used, not `auto`
        seed_everything(job.cfg.seed)
        name, group, _ = job.identity
        tracker = job.tracker(record) if rank == 0 else Tracker.silent()
        if rank == 0 and world == 1:  # the other processes would go on without it
            tracker.trial = SearchTrial.of_this_job(job.objective)
        watch = provenance.Stopwatch(device)
        run = Run(
            *(job.folder, name, group, job.entry, job.cfg.seed, device, tracker, signals),
            *(Path(job.cfg.cache_root), rank, world, job.resume),
        )
        try:
            if signals.received:
                raise Interrupted(signals.received)
            with collecting(job.manifest), writing(job.folder, reading=True):
                for row in job.recipe.run(job.cfg, run):
                    rows.append(row)
        except BaseException as raised:
            error = explain_memory(raised, job.cfg, device)
            if isinstance(error, ConfigError):
                error.started = bool(rows) or not is_untouched(job.folder)
            rows.append(job.failed(error))
            raise error from error.__cause__
        finally:
            with finishing():
                record["inputs"] = job.manifest.digests()
                record |= {"device": provenance.device_name(device), "world_size": world, **watch.read(), **run.stats}
                rows = [job.complete(row, record) for row in rows]
                _close(job, run, rows, error)
    return rows


def _close(job: _Job, run: Run, rows: list[Row], error: BaseException | None) -> None:
    """Leave what the run found, or how it failed, in its folder and with the tracker; nothing if it was refused."""
    if isinstance(error, ConfigError) and not error.started:
        run.tracker.finish(exit_code_of(error))
        if run.main:
            discard(run.dir, job.made)
        return
    if run.main:
        release(run.dir)
        write_rows(run.dir, rows)
        if error is not None:
            write_atomically(run.dir / "traceback.txt", "".join(traceback.format_exception(error)))
            print(f"ended early; row.json and traceback.txt are in {run.dir}", file=sys.stderr)
    if run.tracker.logger is not None:
        files = job.files() if error is None else []
        code = [code_artifact(job.manifest)] if job.cfg.logger.get("save_code") else []
        run.tracker.artifacts([*list_artifacts(run.dir, job.manifest, files), *code])
    if isinstance(error, Diverged):
        run.tracker.alert(f"{run.id} diverged", str(error))
    if len(rows) > 1:
        names = list(dict.fromkeys(name for row in rows for name in (*row.cell, *row.metrics)))
        run.tracker.table("rows", names, [[{**row.cell, **row.metrics}.get(name) for name in names] for row in rows])
    run.tracker.summary(final_values(rows, job.objective))
    run.tracker.finish(exit_code_of(error))
