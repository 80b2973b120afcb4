"""From the shell to a run: the `main` of every entry file."""

from __future__ import annotations

import json
import math
import os
import shlex
import sys
import traceback
from argparse import Namespace
from importlib import import_module
from pathlib import Path

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from src.core.console import show_jobs, show_problems
from src.core.errors import ConfigError, RecombineError
from src.core.problems import compose_all

__all__ = ["JobReport", "main"]

ROOT = Path(__file__).parents[2]


def main(recipe: str, config_name: str) -> None:
    """Run the entry whose procedure is the module `recipe` and whose config is `config/<config_name>.yaml`.

    Everything Hydra's command line offers works; the module (and with it torch) is imported when a run starts.
    """
    arguments = get_args_parser().parse_args()
    typed = shlex.join(sys.argv[1:])
    config_dir = str(ROOT / (arguments.config_path or "config"))
    if arguments.config_path:
        # Hydra reads a relative path from the module that defines the job, a user from the entry's folder.
        sys.argv += ["--config-path", config_dir]

    def job(cfg: DictConfig) -> float | None:
        return _job(recipe, cfg, typed, arguments)

    # Hydra names the job after the module of its function.
    job.__module__ = Path(sys.argv[0]).stem
    # Hydra then hands exceptions to us, where it would print a part of them and exit with 1.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        _check_command(recipe, config_dir, arguments.config_name or config_name, arguments)
        hydra.main(version_base="1.3", config_path=config_dir, config_name=config_name)(job)()
    except ConfigError as error:
        show_problems(error.problems)
        sys.exit(error.exit_code)
    except (HydraException, OmegaConfBaseException) as error:
        show_problems([str(error)])
        sys.exit(ConfigError.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


def _check_command(recipe: str, config_dir: str, config_name: str, arguments: Namespace) -> None:
    """Raise ConfigError with every problem of the command line, those of its working part included."""
    if arguments.shell_completion or arguments.hydra_help or arguments.experimental_rerun:
        return
    overrides = list(arguments.overrides)
    if arguments.config_dir and not any(text.startswith("hydra.searchpath") for text in overrides):
        overrides.append(f"hydra.searchpath=[file://{Path(arguments.config_dir).resolve()}]")
    composition = compose_all(config_dir, config_name, overrides, sweep=arguments.multirun)
    if composition.problems:
        problems = composition.problems
        if composition.cfg is not None:
            problems = [*problems, *import_module("src.core.run").check(import_module(recipe), composition.cfg)]
        raise ConfigError(dict.fromkeys(problems))


def _job(recipe: str, cfg: DictConfig, typed: str, arguments: Namespace) -> float | None:
    """One job of Hydra's. In a multirun a failure is noted and the next job follows; alone, it ends the command."""
    from src.core.run import exit_code, launch

    context = HydraConfig.get()
    sweeping = context.mode == RunMode.MULTIRUN
    command = _command(context, typed, arguments) if sweeping else f"python {context.job.name}.py {typed}".strip()
    code, message, objective = 0, "", None
    try:
        objective = launch(recipe, cfg, command)
    except BaseException as error:
        code, message = exit_code(error), _report(error)
    if sweeping:
        _note(Path(context.sweep.dir), job=context.job.num, exit_code=code, error=message, command=command)
    if code and (not sweeping or code > 128):
        sys.exit(code)
    # Sweepers that optimise take nan as a failed trial.
    return math.nan if code else objective


def _command(context: DictConfig, typed: str, arguments: Namespace) -> str:
    """What runs this job of a multirun alone."""
    flags = [
        part
        for flag, value in (("--config-path", arguments.config_path), ("--config-name", arguments.config_name))
        if value
        for part in (flag, value)
    ]
    overrides = list(context.overrides.task)
    if not arguments.multirun:
        # The experiment file asked for the multirun, and would again.
        overrides.append("hydra.mode=RUN")
    return shlex.join(["python", f"{context.job.name}.py", *flags, *overrides])


def _report(error: BaseException) -> str:
    """Tell what ended a run, and return it in one line."""
    if isinstance(error, ConfigError):
        show_problems(error.problems)
    elif isinstance(error, RecombineError):
        print(error, file=sys.stderr)
    elif not isinstance(error, SystemExit | KeyboardInterrupt):
        traceback.print_exception(error)
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _note(folder: Path, **job: object) -> None:
    # One short line in append mode: jobs of a parallel launcher do not tear each other's.
    with (folder / "jobs.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(job) + "\n")


class JobReport(Callback):
    """Ends a multirun: says which jobs failed and how to repeat them, and exits with the first one's code."""

    def on_multirun_end(self, config: DictConfig, **_: object) -> None:
        """Called by Hydra after the last job."""
        notes = Path(config.hydra.sweep.dir) / "jobs.jsonl"
        jobs = sorted(map(json.loads, notes.read_text(encoding="utf-8").splitlines()), key=lambda job: job["job"])
        show_jobs(jobs)
        failures = [job["exit_code"] for job in jobs if job["exit_code"]]
        if failures:
            sys.exit(failures[0])
