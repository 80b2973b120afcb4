"""A tiny entry with the project's own config groups, called in this process or in one of its own."""

import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from hydra import compose, initialize_config_dir

from recombine.cli.entries import Entry as Spec
from recombine.cli.main import main
from recombine.cli.overrides import compose_all
from recombine.run.launch import check
from tests.core.fit import recipe

ROOT = Path(__file__).parents[2]
FIT = Path(__file__).parent / "fit"
SPEC = Spec("fit", "tests.core.fit.recipe", "fit", "tests.core.fit.settings:FitSettings")


class Result(NamedTuple):
    code: int
    out: str
    err: str


class Entry:
    """The entry `fit` in a folder of its own."""

    def __init__(self, folder: Path, config: Path, monkeypatch, capfd) -> None:
        self.folder, self.config, self.monkeypatch, self.capfd = folder, config, monkeypatch, capfd
        monkeypatch.chdir(folder)

    def __call__(self, *words: str) -> Result:
        """Run the command in this process."""
        self.monkeypatch.setattr(sys, "argv", ["main_fit.py", "--config-path", str(self.config), *words])
        self.capfd.readouterr()
        code = 0
        handlers, level = logging.root.handlers[:], logging.root.level
        try:
            main(SPEC)
        except SystemExit as stop:
            code = stop.code
        finally:
            # Hydra set the logging of a whole process, onto a stream that ends with this call.
            logging.root.handlers[:] = handlers
            logging.root.setLevel(level)
        return Result(code, *self.capfd.readouterr())

    def start(self, *words: str) -> subprocess.Popen:
        """Start the command in a process of its own."""
        command = [sys.executable, str(FIT / "main_fit.py"), "--config-path", str(self.config), *words]
        places = [str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, places))}
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=self.folder, env=environment, stdout=pipe, stderr=pipe, text=True)

    def problems(self, *overrides: str, sweep: bool = False) -> list[str]:
        """Everything the command would report."""
        composition = compose_all(str(self.config), "fit", overrides, sweep=sweep)
        found = [*composition.problems, *check(recipe, composition.cfg)]
        return list(dict.fromkeys(found))

    def compose(self, *overrides: str):
        """The config of the command."""
        with initialize_config_dir(str(self.config), version_base="1.3"):
            return compose("fit", list(overrides))


@pytest.fixture(scope="session")
def fit_config(tmp_path_factory) -> Path:
    """The project's groups with a primary config and experiments of their own."""
    config = tmp_path_factory.mktemp("fit") / "config"
    for group in ("optimizer", "engine", "logger", "launcher", "sweeper", "hydra"):
        shutil.copytree(ROOT / "config" / group, config / group)
    shutil.copy(ROOT / "config" / "base.yaml", config)
    shutil.copy(FIT / "fit.yaml", config)
    experiment = config / "experiment" / "fit"
    experiment.mkdir(parents=True)
    sweep = "hydra:\n  mode: MULTIRUN\n  sweeper:\n    params:\n      seed: 0,1\n"
    (experiment / "seeds.yaml").write_text(f"# @package _global_\n{sweep}steps: 3\n")
    (experiment / "twins.yaml").write_text(
        f"# @package _global_\n{sweep}      name: with-\\${{seed}},alone\nsteps: 3\n"
    )
    (experiment / "slip.yaml").write_text("# @package _global_\nstepps: 3\n")
    return config


@pytest.fixture
def fit(tmp_path, fit_config, monkeypatch, capfd) -> Entry:
    return Entry(tmp_path, fit_config, monkeypatch, capfd)
