"""`sweeper=optuna`: a search over settings that maximises an entry's objective, and that can be stopped and resumed.

Hydra's own plugin asks for Optuna 2; this one is thin enough to follow Optuna itself. Trials lie in a file: a repeated
command continues its study, and a trial that was stopped is tried again with its values, which continues its run.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import optuna
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState
from pydantic import Field

from recombine.core.errors import ConfigError
from recombine.core.field_types import FileName
from recombine.core.settings import Settings
from recombine.run.search_trial import VARIABLE, open_storage

__all__ = ["OptunaSweeper", "SearchSettings", "planned", "split"]

log = logging.getLogger(__name__)
SAMPLERS = {"tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}
STOPPED = "stopped"
"""Attribute of a trial that was interrupted: another one took its values."""


class SearchSettings(Settings):
    """hydra.sweeper of `sweeper=optuna`."""

    n_trials: Annotated[int, Field(ge=1)] = 20
    """In all, those of earlier calls of the same command included."""
    n_jobs: Annotated[int, Field(ge=1)] = 1
    """At once, with a launcher that runs jobs side by side."""
    folder: Annotated[str, Field(min_length=1)] = "outputs/optuna"
    """Where studies lie."""
    study: FileName | None = None
    """Its name; null: that of the entry and all overrides."""
    sampler: Literal["tpe", "random"] = "tpe"
    """How values are drawn."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of the sampler."""
    prune: bool = True
    """Stop trials whose objective is below the median of others at the same step."""
    params: dict[str, Any] | None = None
    """Swept settings by name, of experiment files."""


class OptunaSweeper:
    """Asks Optuna for settings, launches jobs with them, tells what they came to."""

    def __init__(
        self,
        *,
        n_trials: int,
        n_jobs: int,
        folder: str,
        study: str | None = None,
        sampler: str = "tpe",
        seed: int = 0,
        prune: bool = True,
        params: DictConfig | None = None,
    ) -> None:
        """`n_jobs` trials at once, with a launcher that runs jobs side by side; the study lies in `folder`.

        Without a name, the study is that of the entry and all overrides.
        """
        self.n_trials, self.n_jobs, self.sampler, self.seed, self.prune = n_trials, n_jobs, sampler, seed, prune
        self.folder, self.study, self.params = Path(folder).absolute(), study, dict(params or {})
        self.launcher: Launcher | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Make the launcher that Hydra is configured with."""
        plugins = Plugins.instance()
        self.entry = str(config.hydra.job.name)
        self.launcher = plugins.instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Run trials until `n_trials` have ended, those of earlier calls included."""
        space, fixed = split([*(f"{key!s}={value}" for key, value in self.params.items()), *arguments])
        if not space:
            raise ConfigError(
                "sweeper=optuna: no setting has several values; give a choice, as method=kl,kl_dp, or a range, as "
                "'lr_factor=tag(log,interval(0.1,10))'"
            )
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.file = study_file(self.folder, self.entry, self.study, space, fixed)
        self.folder.mkdir(parents=True, exist_ok=True)
        study = optuna.create_study(
            storage=open_storage(self.file), study_name=self.file.stem, direction="maximize", load_if_exists=True
        )
        # a new seed for each call: a continued study must not draw the same values again
        study.sampler = SAMPLERS[self.sampler](seed=self.seed + len(study.trials))  # type: ignore[abstract]
        take_up_again(study)
        number = 0
        while (left := self.n_trials - len(ended(study))) > 0:
            number += self._batch(study, space, fixed, min(left, self.n_jobs), number)
        self._report(study)

    def _batch(
        self, study: optuna.Study, space: dict[str, BaseDistribution], fixed: list[str], count: int, number: int
    ) -> int:
        """Run `count` trials at once and tell the study what they came to; returns how many."""
        assert self.launcher is not None
        trials = [study.ask(space) for _ in range(count)]
        jobs = []
        for trial in trials:
            name = f"++hydra.job.env_set.{VARIABLE}='{trial.number if self.prune else ''}:{self.file}'"
            jobs.append([*fixed, *(f"{key}={value}" for key, value in trial.params.items()), name])
        for trial, job in zip(trials, self.launcher.launch(jobs, initial_job_idx=number), strict=True):
            tell(study, trial, job)
        return count

    def _report(self, study: optuna.Study) -> None:
        trials = ended(study)
        pruned = sum(trial.state == TrialState.PRUNED for trial in trials)
        log.info("search: %d trials, %d of them stopped early; the study is %s", len(trials), pruned, self.file)
        if any(trial.state == TrialState.COMPLETE for trial in trials):
            best = study.best_trial
            words = " ".join(f"{key}={value}" for key, value in best.params.items())
            log.info("best: %.4g with %s", best.value, words)


def study_file(
    folder: Path, entry: str, study: str | None, space: Mapping[str, BaseDistribution], fixed: Iterable[str]
) -> Path:
    """Where a study lies: that of a name, else of the entry and all overrides."""
    words = json.dumps([sorted(fixed), sorted(map(str, space.items()))])
    return folder / f"{study or f'{entry}-{hashlib.sha256(words.encode()).hexdigest()[:8]}'}.log"


def planned(entry: str, sweeper: Any, arguments: Iterable[str]) -> list[FrozenTrial]:
    """The trials of a search that have ended, by the node `hydra.sweeper` and the overrides of its command."""
    space, fixed = split([*(f"{key!s}={value}" for key, value in (sweeper.params or {}).items()), *arguments])
    file = study_file(Path(sweeper.folder).absolute(), entry, sweeper.study, space, fixed)
    if not file.is_file():
        return []
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return ended(optuna.load_study(study_name=file.stem, storage=open_storage(file)))


def tell(study: optuna.Study, trial: optuna.Trial, job: JobReturn) -> None:
    """Tell the study how a job ended: with a number, stopped early (None), or failed (nan)."""
    value: Any = job.return_value
    if value is None and study.trials[trial.number].intermediate_values:
        study.tell(trial, state=TrialState.PRUNED)
    elif value is None or math.isnan(value):
        study.tell(trial, state=TrialState.FAIL)
    else:
        study.tell(trial, float(value))


def ended(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that count."""
    return [trial for trial in study.trials if trial.state.is_finished() and STOPPED not in trial.user_attrs]


def take_up_again(study: optuna.Study) -> None:
    """Trials that never ended, as their process was stopped, are tried again with their values."""
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        study.enqueue_trial(trial.params)
        optuna.Trial(study, trial._trial_id).set_user_attr(STOPPED, True)
        study.tell(trial.number, state=TrialState.FAIL)


def split(arguments: Iterable[str]) -> tuple[dict[str, BaseDistribution], list[str]]:
    """Overrides with several values as distributions by name, and the others as they are; of two, the last counts."""
    overrides = {one.get_key_element(): one for one in OverridesParser.create().parse_overrides([*arguments])}
    space = {key: distribution(one) for key, one in overrides.items() if one.is_sweep_override()}
    return space, [str(one.input_line) for key, one in overrides.items() if key not in space]


def distribution(override: Override) -> BaseDistribution:
    """What Optuna draws a swept override from: a choice, a range or an interval; `tag(log, ...)` on a log scale."""
    value: Any = override.value()
    log_scale = "log" in value.tags
    if isinstance(value, IntervalSweep):
        whole = isinstance(value.start, int) and isinstance(value.end, int) and "float" not in value.tags
        kind: Any = IntDistribution if whole else FloatDistribution
        return kind(value.start, value.end, log=log_scale)
    if isinstance(value, RangeSweep):
        start, stop, step = value.start, value.stop, value.step
        assert start is not None and stop is not None
        if isinstance(step, float):
            return FloatDistribution(start, start + step * (math.ceil((stop - start) / step) - 1), step=step)
        return IntDistribution(start, start + step * ((stop - start - 1) // step), step=step)  # type: ignore[arg-type]
    assert isinstance(value, ChoiceSweep)
    choices: Sequence[str] = [*override.sweep_string_iterator()]
    return CategoricalDistribution(choices)
