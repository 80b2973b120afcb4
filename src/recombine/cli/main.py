"""From the shell to a run: the `main` of every entry file."""

from __future__ import annotations

import os
import re
import secrets
import shlex
import sys
import traceback
from argparse import Namespace
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from recombine.cli.downloads import download
from recombine.cli.dry_run import plan, show_plan, show_search
from recombine.cli.entries import ENTRIES, Entry
from recombine.cli.help import PROGRAM, print_help, program, register_help, started_as
from recombine.cli.job_output import named_lines
from recombine.cli.job_report import SWEEP, JobReport, notes, show_jobs_of
from recombine.cli.launchers import OWN_PROCESS, SHARING, launcher_error, leave_to_launcher, refused_by_hydra
from recombine.cli.overrides import compose_all
from recombine.cli.search_path import use_groups
from recombine.cli.slips import first_lines
from recombine.cli.slots import gpus, register_places, take_place
from recombine.core.errors import ConfigError, RecombineError, WriteError, exit_code_of, reader_is_gone
from recombine.core.files import CONFIG_DIR, append_records, config_files, use_config_dirs, writing
from recombine.run.config import entry_name, run_folder, validate
from recombine.run.console import first_rank, show_problems
from recombine.run.shown import show_finished

__all__ = ["main"]


def main(entry: str | Entry) -> None:
    """Run an entry, given by name or as a custom `Entry`, as the command line says.

    Everything Hydra's command line offers works, and --dry-run, which lists the jobs, and --download, which fetches
    the networks they need. The procedure, and with it torch, is imported when a run starts.
    """
    entry = ENTRIES[entry] if isinstance(entry, str) else entry
    use_groups(entry.groups)
    register_help()
    register_places()
    typed = shlex.join(sys.argv[1:])
    flags, arguments, config_dir = _read_arguments()
    name = arguments.config_name or entry.config

    def job(cfg: DictConfig) -> float | None:
        return _job(entry, cfg, typed, arguments)

    # Hydra names the job after the module of its function.
    job.__module__ = entry.name
    # Hydra then passes exceptions to us, where it would print a part of them and exit with 1.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    os.environ[SWEEP], os.environ[PROGRAM] = secrets.token_hex(4), started_as(entry.name)
    JobReport.config, JobReport.begun = None, False
    try:
        _check_command(entry, config_dir, arguments)
        folders = _with_folders(arguments)
        if arguments.help and print_help(entry.name, config_dir, name, folders, resolve=arguments.resolve):
            return None
        if "--dry-run" in flags and show_search(entry.name, config_dir, name, arguments.overrides):
            return None
        if flags:
            jobs = list(plan(entry.name, config_dir, name, arguments.overrides, sweep=arguments.multirun))
            return download([job.cfg for job in jobs]) if "--download" in flags else show_plan(jobs)
        with writing(Path(), reading=True):
            hydra.main(version_base="1.3", config_path=config_dir, config_name=entry.config)(job)()
    except (Exception, KeyboardInterrupt) as error:
        sys.exit(_explain(error))


def _read_arguments() -> tuple[set[str], Namespace, str]:
    """Flags of ours, what Hydra's parser makes of the others, and the folder of configs; sys.argv as Hydra wants it."""
    flags = set(sys.argv) & {"--dry-run", "--download"}
    sys.argv[1:] = [_at_home(word) for word in sys.argv[1:] if word not in flags]
    # Overrides may stand before and after flags, as in `seed=0,1 -m logger=none`; argparse wants them in one piece.
    sys.argv[1:] = sorted(sys.argv[1:], key=_is_override)
    arguments = get_args_parser().parse_args()
    config_dir = _config_dir(arguments.config_path)
    if arguments.config_path:
        # Hydra reads a relative path from the module that defines the job, a user from where the command is typed.
        sys.argv.append(f"--config-path={config_dir}")
    return flags, arguments, config_dir


def _explain(error: BaseException) -> int:
    """Say what ended a command outside of its jobs; the exit code. Raises what nobody can mend but us again."""
    if isinstance(error, KeyboardInterrupt):
        return exit_code_of(error)
    if isinstance(error, BrokenPipeError):
        return reader_is_gone()
    if isinstance(error, ConfigError | HydraException | OmegaConfBaseException):
        problems = getattr(error, "problems", [first_lines(error)])
    elif not _begun() and (told := refused_by_hydra(error)):
        problems = [told]
    elif isinstance(error, WriteError):  # of Hydra's own files
        print(error, file=sys.stderr)
        return error.exit_code
    else:
        return _end_multirun(error)
    if first_rank():
        show_problems(problems)
    return ConfigError.exit_code


def _config_dir(given: str | None) -> str:
    """The folder of --config-path, from where the command is typed or else beside the script; without one, ours."""
    if given is None:
        return str(CONFIG_DIR)
    beside = Path(sys.argv[0]).resolve().parent / given
    return str(beside if beside.is_dir() and not Path(given).is_dir() else Path(given).resolve())


def _at_home(word: str) -> str:
    """`output_root=~/x` with the user's home: shells do not see it there, and Hydra would make a folder called ~."""
    key, _, value = word.partition("=")
    found = re.fullmatch(r"(['\"]?)(~(?:/.*)?)\1", value)
    return f"{key}='{os.path.expanduser(found[2])}'" if found else word


def _is_override(word: str) -> bool:
    return word.startswith("~") or ("=" in word and not word.startswith("-"))


def _check_command(entry: Entry, config_dir: str, arguments: Namespace) -> None:
    """Raise ConfigError with every problem of the command line, those of its working part included."""
    if arguments.hydra_help and arguments.overrides:
        raise ConfigError("--hydra-help is about Hydra and takes no settings; --help is about those of this entry")
    if arguments.shell_completion or arguments.hydra_help or arguments.experimental_rerun:
        return
    if arguments.config_dir is not None and not os.path.isdir(arguments.config_dir):
        raise ConfigError(f"--config-dir {arguments.config_dir}: there is no such folder")
    chdir = r"\+*hydra\.job\.chdir=(true|yes|on|1)"
    if any(re.fullmatch(chdir, text.lower()) for text in arguments.overrides):
        raise ConfigError("hydra.job.chdir=true: a run has a folder of its own; paths are those of where you type")
    name = arguments.config_name or entry.config
    composition = compose_all(config_dir, name, _with_folders(arguments), sweep=arguments.multirun)
    use_config_dirs(composition.folders)
    problems, schema = composition.problems, resolve_name(entry.settings)
    asks = arguments.cfg or arguments.info or arguments.help  # about the config, whatever networks are there
    if composition.cfg is not None and (problems or not asks):
        problems += validate(composition.cfg, schema, rules=not asks)
    if composition.searches and not problems:
        problems += schema.of(composition.cfg, "").check_search()
    for cfg in composition.others.values():  # a rule between settings of one job says nothing about the others
        problems += validate(cfg, schema, rules=False)
    told: dict[str, str] = {}
    for text in problems:  # of a setting that is unknown twice, where different ones are known, once
        told.setdefault(text.partition(": known are")[0], text)
    if told:
        raise ConfigError(told.values())


def _with_folders(arguments: Namespace) -> list[str]:
    """The overrides, with the folder of --config-dir among them."""
    overrides = list(arguments.overrides)
    if arguments.config_dir and not any(text.startswith("hydra.searchpath") for text in overrides):
        overrides.append(f"hydra.searchpath=[file://{Path(arguments.config_dir).resolve()}]")
    return overrides


def _job(entry: Entry, cfg: DictConfig, typed: str, arguments: Namespace) -> float | None:
    """One job of Hydra's. In a multirun a failure is noted and the next job follows; alone, it ends the command."""
    JobReport.begun = True
    context = HydraConfig.get()
    sweeping = context.mode == RunMode.MULTIRUN
    launcher = context.launcher._target_.rpartition(".")[2] if sweeping else ""
    if launcher in SHARING and (gpus() or launcher != "JoblibLauncher"):  # on CPUs its n_jobs says how many run at once
        take_place()  # a GPU, before CUDA starts
    with named_lines(f"[job {context.job.num}] ") if launcher == "JoblibLauncher" else nullcontext():
        return _run_job(entry, cfg, typed, arguments, context, launcher)


def _run_job(
    entry: Entry, cfg: DictConfig, typed: str, arguments: Namespace, context: Any, launcher: str
) -> float | None:
    sweeping = context.mode == RunMode.MULTIRUN
    use_config_dirs(Path(source.path) for source in context.runtime.config_sources if source.schema == "file")
    command = f"{program()} {_alone(context, arguments) if sweeping else typed}".strip()
    code, message, objective = 0, "", None
    headline: tuple[str, ...] = ()
    try:
        objective, headline = _show_or_run(entry, cfg, command, _labels(context, sweeping))
    except BaseException as error:
        code, message = exit_code_of(error), _report(error)
        if sweeping and isinstance(error, ConfigError):
            # Alone, a slip of the keyboard leaves nothing behind; in a multirun it is a cell that a table must show.
            from recombine.run.launch import record_problems

            record_problems(entry.recipe, cfg, command, error)
    if sweeping and first_rank():
        note: dict[str, Any] = {"job": context.job.num, "exit_code": code, "error": message, "command": command}
        name = entry_name(entry.recipe)
        note |= {"overrides": list(context.overrides.task), "folder": str(run_folder(name, cfg)), "headline": headline}
        note["objective"] = objective
        append_records(notes(context.sweep.dir), [note])
    if code and (not sweeping or (code > 128 and launcher not in OWN_PROCESS)):
        sys.exit(code)
    return leave_to_launcher(code, launcher) if code else objective


def _show_or_run(
    entry: Entry, cfg: DictConfig, command: str, labels: dict[str, str]
) -> tuple[float | None, tuple[str, ...]]:
    """(objective, headline) of a run that is finished, without torch, or of one that starts now."""
    import_module("recombine.data.fingerprint")  # knows how to look at data again
    files = resolve_name(entry.files) if entry.files else None
    if done := show_finished(entry_name(entry.recipe), cfg, files):
        return done
    from recombine.run.launch import launch

    return launch(entry.recipe, cfg, command, labels), tuple(getattr(import_module(entry.recipe), "HEADLINE", ()))


def _labels(context: Any, sweeping: bool) -> dict[str, str]:
    """What a job belongs to: its experiment, the table that the experiment fills, its multirun."""
    experiment = str(context.runtime.choices.get("experiment") or "")
    group, _, name = experiment.rpartition("/")
    labels = {"experiment": experiment} if experiment else {}
    labels |= {"table": experiment} if name in config_files(f"table/{group}") else {}
    return labels | ({"sweep": Path(context.sweep.dir).name} if sweeping else {})


def _alone(context: Any, arguments: Namespace) -> str:
    """The arguments that run this job of a multirun alone."""
    given = {name: getattr(arguments, name) for name in ("config_path", "config_name", "config_dir")}
    flags = [word for name, value in given.items() if value for word in (f"--{name.replace('_', '-')}", value)]
    flags += [text for text in context.overrides.hydra if text.startswith("hydra.searchpath")]
    # An experiment file that starts a multirun would start it again.
    mode = [] if arguments.multirun else ["hydra.mode=RUN"]
    return shlex.join([*flags, *context.overrides.task, *mode])


def _report(error: BaseException) -> str:
    """Show what ended a run, and return it in one line."""
    known = isinstance(error, RecombineError)
    if isinstance(error, ConfigError) and first_rank():
        show_problems(error.problems, started=error.started)
    elif known and first_rank():
        print(error, file=sys.stderr)
    elif not known and not isinstance(error, SystemExit | KeyboardInterrupt):
        traceback.print_exception(error)
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return line if known else f"{type(error).__name__}: {line}"


def _begun() -> bool:
    """Whether a job has started, in this process or, of a multirun, in another one that left a note."""
    return JobReport.begun or bool(JobReport.config and notes(JobReport.config.hydra.sweep.dir).is_file())


def _end_multirun(error: BaseException) -> int:
    """Show the jobs of a multirun that its launcher broke off, and why; any other error is raised again."""
    told = launcher_error(error, JobReport.config.hydra.launcher) if JobReport.config else None
    if told is None or JobReport.config is None:
        raise error
    if notes(JobReport.config.hydra.sweep.dir).is_file():
        show_jobs_of(JobReport.config)
    print(told, file=sys.stderr)
    return told.exit_code
