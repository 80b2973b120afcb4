"""What the jobs of a multirun note, and the table of them that ends it."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, read_write

from recombine.cli.dry_run import last_metrics
from recombine.cli.launchers import is_search
from recombine.core.files import CONFIG_DIR, read_records
from recombine.run.console import first_rank, show_jobs

__all__ = ["SWEEP", "JobReport", "notes", "show_jobs_of"]

REFERENCE = re.compile(r"\\\$\{([^}]*)\}")
"""An escaped reference to a setting, in the values that an experiment file sweeps."""
SWEEP = "RECOMBINE_SWEEP"
"""Environment variable with a name of this multirun's own, which two may share the folder of."""


def notes(folder: str) -> Path:
    """What the jobs of this multirun note, in whatever process, and no other's that has the same folder."""
    return Path(folder) / f"jobs-{os.environ.get(SWEEP, '')}.jsonl"


def show_jobs_of(config: DictConfig) -> list[int]:
    """Show the jobs of a multirun; the exit codes of those that failed."""
    noted = {
        job["job"]: job for job in read_records(notes(config.hydra.sweep.dir))[0]
    }  # of one that was queued again, the last
    jobs = [noted[number] for number in sorted(noted)]
    experiment = str(config.hydra.runtime.choices.get("experiment"))
    filled = experiment if (CONFIG_DIR / "table" / f"{experiment}.yaml").is_file() else None
    for job in jobs:
        job["metrics"] = last_metrics(Path(job["folder"]))
        if is_search(config):  # what it chose by comes first
            job["metrics"] |= {"objective": job["objective"]} if job["objective"] is not None else {}
            job["headline"] = ["objective", *job["headline"]]
    show_jobs(jobs, filled)
    return [job["exit_code"] for job in jobs if job["exit_code"]]


class JobReport(Callback):
    """Ends a multirun: shows its jobs and how to repeat those that failed, and exits with the first one's code."""

    config: DictConfig | None = None
    """Of the multirun that is on its way."""
    begun = False
    """Whether a job has started in this process."""

    def on_multirun_start(self, config: DictConfig, **_: object) -> None:
        """Called by Hydra, which resolves swept values twice: a reference `\\${seed}` in them stays each job's own."""
        JobReport.config = config
        params = (config.hydra.sweeper or {}).get("params") or OmegaConf.create()
        values: Any = OmegaConf.to_container(params, resolve=False)
        with read_write(params):
            for key, value in values.items():
                params[key] = REFERENCE.sub(r"$\\{\1\\}", value) if isinstance(value, str) else value

    def on_multirun_end(self, config: DictConfig, **_: object) -> None:
        """Called by Hydra after the last job."""
        if first_rank() and (failures := show_jobs_of(config)):
            sys.exit(failures[0])
