"""The search by Optuna where Hydra looks for plugins, without importing Optuna before a search begins."""

from __future__ import annotations

from typing import Any

from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

__all__ = ["Optuna"]


class Optuna(Sweeper):
    """`recombine.cli.optuna_sweeper.OptunaSweeper`, made when Hydra sets it up."""

    def __init__(self, **options: Any) -> None:
        self.options = options

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra before `sweep`."""
        from recombine.cli.optuna_sweeper import OptunaSweeper, SearchSettings
        from recombine.core.settings import read

        read(SearchSettings, self.options, "hydra.sweeper")
        self.search = OptunaSweeper(**self.options)
        self.search.setup(hydra_context=hydra_context, task_function=task_function, config=config)

    def sweep(self, arguments: list[str]) -> None:
        """Run the search."""
        self.search.sweep(arguments)
