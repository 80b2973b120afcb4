"""What Hydra's launchers and sweepers need, ask of a job, and cannot say in one line themselves."""

from __future__ import annotations

import math
import shutil
import signal
import traceback
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from recombine.cli.slips import first_lines
from recombine.core.errors import ConfigError, RecombineError

__all__ = [
    "OWN_PROCESS",
    "SHARING",
    "is_search",
    "launcher_error",
    "leave_to_launcher",
    "refused_by_hydra",
    "why_absent",
]

PACKAGE = Path(__file__).parents[1]

SHARING = ("JoblibLauncher", "LocalLauncher")
"""Launchers that know nothing of GPUs; Slurm and ray give each job its own."""
OWN_PROCESS = ("LocalLauncher", "SlurmLauncher")
"""Those of submitit: a job has a process of its own, which has to end with a result."""
AHEAD = {128 + signal.SIGUSR1, 128 + signal.SIGUSR2}
"""Exit codes of runs that were stopped by the signal that submitit sends ahead of a time limit."""

PACKAGES = {
    ("launcher", "joblib"): ("hydra_plugins.hydra_joblib_launcher", "sweeps"),
    ("launcher", "submitit_local"): ("hydra_plugins.hydra_submitit_launcher", "submitit"),
    ("launcher", "submitit_slurm"): ("hydra_plugins.hydra_submitit_launcher", "submitit"),
    ("launcher", "ray"): ("hydra_plugins.hydra_ray_launcher", "ray"),
    ("sweeper", "optuna"): ("optuna", "optuna"),
}
"""What choices need beside this package, and the extra that brings it."""


def why_absent(group: str, choice: str) -> str | None:
    """Why this launcher or sweeper cannot be used here; None where it can."""
    package, extra = PACKAGES.get((group, choice), ("", ""))
    if package and not _installed(package):
        return f"it is not installed; pip install 'recombine[{extra}]'"
    if choice == "submitit_slurm" and shutil.which("srun") is None:
        return "Slurm's srun is not on this machine; launcher=submitit_local runs jobs here"
    return None


def is_search(config: DictConfig) -> bool:
    """Whether the sweeper of a config chooses values by what jobs come to, as all but Hydra's own do."""
    target = OmegaConf.select(config, "hydra.sweeper._target_")
    return target is not None and not str(target).endswith(".BasicSweeper")


def leave_to_launcher(code: int, launcher: str) -> float:
    """What a job of a multirun returns that ended with `code` other than 0: nan, which sweepers take as a failed trial.

    A run that a time limit stopped is queued again, if the launcher's `max_num_timeout` allows it: submitit's own
    handler of the signal, which the run had replaced to save itself, then ends the process.
    """
    if launcher in OWN_PROCESS and code in AHEAD:
        from submitit.core.utils import UncompletedJobError

        with suppress(UncompletedJobError):  # it was queued often enough
            signal.raise_signal(code - 128)
    return math.nan


def launcher_error(error: BaseException, launcher: Any) -> RecombineError | None:
    """What a launcher raised, as one message: no cluster takes the job, or the process of one was killed.

    None for other errors, those of a job that raised included: their traceback says more. `launcher`: its settings.
    """
    if type(error).__module__.partition(".")[0] not in ("submitit", "joblib", "ray"):
        return None
    if "with trace:" in str(error) or type(error).__name__.startswith("RayTaskError"):
        return None
    line = next((text.strip() for text in str(error).splitlines() if text.strip()), type(error).__name__)
    if line.startswith("sbatch: "):
        asked = ("partition", "gpus_per_node", "cpus_per_task", "mem_gb", "timeout_min", "nodes")
        given = ", ".join(f"hydra.launcher.{key}={launcher.get(key)}".replace("None", "null") for key in asked)
        return ConfigError(f"Slurm takes no such job: {line.removeprefix('sbatch: error: ')}; asked for {given}")
    return RecombineError(f"a job ended without a word, as a process that is killed does: {line}")


def refused_by_hydra(error: BaseException) -> str | None:
    """What Hydra, a launcher or a sweeper raised before the first job, in a line: its settings or folders are wrong.

    None for what code of this package raised, or a job in another process: their traceback says more.
    """
    (*_, last) = traceback.extract_tb(error.__traceback__)
    if Path(last.filename).is_relative_to(PACKAGE) or type(error.__cause__).__name__ == "_RemoteTraceback":
        return None
    if isinstance(error, OSError) and error.filename:
        mend = "give another folder by output_root=, hydra.run.dir= or hydra.sweep.dir="
        return f"cannot write {error.filename}: {error.strerror}; {mend}"
    says = first_lines(error) if str(error) else f"{type(error).__name__}: {last.line}"
    return f"Hydra does not take this command, or a setting below hydra: {says}"


def _installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # of a part of a package that is not there
        return False
