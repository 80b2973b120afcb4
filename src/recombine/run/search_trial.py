"""The trial of a hyper-parameter search that a run is: it reports the objective while it trains, and may be stopped."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recombine.core.errors import Pruned

__all__ = ["VARIABLE", "SearchTrial", "open_storage"]

VARIABLE = "RECOMBINE_TRIAL"
"""Environment variable of a job: number of the trial, a colon, and the file of its study."""


def open_storage(file: Path) -> Any:
    """Trials in a file that several processes may write."""
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    return JournalStorage(JournalFileBackend(str(file)))


class SearchTrial:
    """One trial as its run sees it."""

    def __init__(self, number: int, file: Path, objective: str) -> None:
        import optuna

        pruner = optuna.pruners.MedianPruner()
        study = optuna.load_study(study_name=file.stem, storage=open_storage(file), pruner=pruner)
        self.trial = optuna.trial.Trial(study, study.trials[number]._trial_id)
        self.names = {f"val/{objective}", objective.replace("search_", "search/")}

    @classmethod
    def of_this_job(cls, objective: str) -> SearchTrial | None:
        """The trial that the environment names, if any."""
        number, _, file = os.environ.get(VARIABLE, "").partition(":")
        return cls(int(number), Path(file), objective) if file and objective else None

    def report(self, values: Mapping[str, float], step: int) -> None:
        """Tell the objective at a step, if it is among these values; Pruned if it is below the median of others."""
        for name in self.names & values.keys():
            self.trial.report(values[name], step)
            if self.trial.should_prune():
                raise Pruned(f"stopped by the search: {name} {values[name]:.4g} at step {step} is below the median")
