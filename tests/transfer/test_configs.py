"""Every option, experiment and table of transfer composes, and names settings that exist."""

from pathlib import Path
from pkgutil import resolve_name

import numpy as np
import pytest
import torch
import yaml
from hydra import compose
from omegaconf import OmegaConf

from recombine.cli.entries import ENTRIES, register_papers
from recombine.cli.overrides import compose_all
from recombine.cli.search_path import initialize_entry
from recombine.core.settings import find_problems
from recombine.engine.class_predictions import ClassPredictions, summarize
from recombine.models.settings import ModelSettings
from recombine.report.spec import load_specs
from recombine.run.config import validate
from recombine.transfer.method_settings import METHOD
from recombine.transfer.metrics import transfer_metrics
from recombine.transfer.ranking import score_candidate
from recombine.transfer.recipe import routing
from tests.composing import composed
from tests.sweeps import choices, experiments, written

register_papers()
CONFIG = Path(__file__).parents[2] / "config"
PRIMARY = {name: ENTRIES[name].config for name in ("transfer", "multi_teacher")}
LABELS = np.arange(12) % 3
STUDENT, AFTER, TEACHER = ((LABELS + np.isin(np.arange(12), wrong)) % 3 for wrong in ([0, 1, 2, 3], [2, 3, 4], [3, 5]))
PREDICTIONS = [
    ClassPredictions(*summarize(torch.eye(3)[torch.tensor(p)], torch.tensor(LABELS)), torch.tensor(LABELS), None)
    for p in (STUDENT, TEACHER)
]
RIGHT = [predicted == LABELS for predicted in (STUDENT, AFTER, TEACHER)]
CONTROLS = {name: RIGHT[0] for name in ("xe", "self_dist")}
METRICS = {
    *transfer_metrics(*RIGHT, LABELS, 3, controls=CONTROLS)[0],
    *score_candidate(*PREDICTIONS),
    *routing([{"train/to_teacher": 1.0}]),
    *("rank", "parameters", "steps", "networks", "effect"),
}
"""Names of all metrics that rows of transfers and rankings have, and those made of several."""
EXPERIMENTS = [f"{entry}/{name}" for entry in PRIMARY for name in experiments(entry)]


def swept(entry, experiment):
    """What an experiment sweeps, if it sweeps."""
    sweeps = OmegaConf.select(written(entry, experiment), "hydra.sweeper.params")
    return choices(entry, experiment) if sweeps else {}


def options(entry, group):
    """The files of a group that an entry sees."""
    return CONFIG / (f"transfer/{group}" if group in ("method", "pair") else group)


def option(entry, group, value):
    """A file of a group, a method with the parts that it takes from other groups."""
    node = yaml.safe_load((options(entry, group) / f"{value}.yaml").read_text())
    for part in node.get("defaults", []) if group == "method" else []:
        ((name, chosen),) = part.items()
        file = CONFIG / "transfer" / name.strip("/") / f"{chosen}.yaml"
        node["method"][name.strip("/")] = yaml.safe_load(file.read_text())
    return node


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_experiment_names_settings_and_options_that_exist(experiment):
    """Its first job composes as a whole; of the others, what differs is checked by itself."""
    entry, _, name = experiment.partition("/")
    sweeps, schema = swept(entry, name), resolve_name(ENTRIES[entry].settings)
    first = [f"{key}={values[0]}" for key, values in sweeps.items()]
    cfg = composed(entry, f"experiment={experiment}", *first)
    assert validate(cfg, schema, rules=False) == []
    overridden = OmegaConf.to_container(written(entry, name))
    for key, values in sweeps.items():
        group, _, package = key.partition("@")
        if not options(entry, group).is_dir():
            for value in values[1:]:
                OmegaConf.update(cfg, key, yaml.safe_load(value.replace("\\", "")), force_add=False)
                assert validate(cfg, schema, rules=False) == []
            continue
        nodes = {value: option(entry, group, value) for value in values}
        for value, node in nodes.items():
            if group == "method":
                assert METHOD.problems({**node["method"], **overridden.get("method", {})}, f"method={value}") == []
            elif group == "model":
                assert find_problems(ModelSettings, {**node, **overridden.get(package, {})}, value) == []
            elif group == "pair":
                assert node.keys() == {"student", "teacher"}


@pytest.mark.slow
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_choice_of_an_experiment_composes(experiment):
    entry, _, name = experiment.partition("/")
    found = compose_all(str(CONFIG), PRIMARY[entry], [f"experiment={experiment}"])
    assert found.problems == []
    assert validate(found.cfg, resolve_name(ENTRIES[entry].settings), rules=False) == []
    with initialize_entry(entry):
        for key, values in swept(entry, name).items():
            for value in values if key.startswith(("model@", "method")) else ():
                compose(PRIMARY[entry], [f"experiment={experiment}", f"{key}={value}"])


@pytest.mark.parametrize("entry", PRIMARY)
def test_tables_ask_for_what_rows_have(entry):
    specs = {name: spec for name, spec in load_specs(CONFIG / "table").items() if spec.entry == entry}
    assert specs
    for spec in specs.values():
        assert spec.command.startswith(f"python main_{entry}.py")
        needed = {metric.metric or name for name, metric in spec.metrics.items()}
        needed |= {name for metric in spec.metrics.values() for name in metric.min_value}
        assert needed <= METRICS, f"{spec.name}: no row has {needed - METRICS}"
        for cell in spec.published:
            assert set(spec.keys) <= set(cell), spec.name
