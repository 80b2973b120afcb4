"""Every option, experiment and table of transfer composes, and names settings that exist."""

from pathlib import Path
from pkgutil import resolve_name

import numpy as np
import pytest
import torch
from hydra import compose
from hydra.core.override_parser.overrides_parser import OverridesParser

from recombine.cli.entries import ENTRIES, register_papers
from recombine.cli.overrides import compose_all
from recombine.cli.search_path import initialize_entry
from recombine.engine.evaluate import Predictions
from recombine.report.spec import load_specs
from recombine.run.config import validate
from recombine.transfer.metrics import transfer_measures
from recombine.transfer.ranking import outlook
from recombine.transfer.recipe import routing

register_papers()
CONFIG = Path(__file__).parents[2] / "config"
PRIMARY = {"transfer": "transfer/transfer", "multi_teacher": "multi_teacher/multi_teacher"}
LABELS = np.arange(12) % 3
STUDENT, AFTER, TEACHER = ((LABELS + np.isin(np.arange(12), wrong)) % 3 for wrong in ([0, 1, 2, 3], [2, 3, 4], [3, 5]))
SAID = [Predictions(torch.eye(3)[torch.tensor(said)], torch.tensor(LABELS), None) for said in (STUDENT, TEACHER)]
MEASURED = {
    *transfer_measures(STUDENT, AFTER, TEACHER, LABELS, 3)[0],
    *outlook(*SAID),
    *routing([{"train/to_teacher": 1.0}]),
    *("rank", "parameters", "accuracy_best"),
}
"""Names of all metrics that rows of transfers and rankings have."""
EXPERIMENTS = [
    f"{entry}/{path.stem}" for entry in PRIMARY for path in sorted((CONFIG / "experiment" / entry).glob("*"))
]


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_choice_of_an_experiment_composes(experiment):
    entry = experiment.partition("/")[0]
    found = compose_all(str(CONFIG), PRIMARY[entry], [f"experiment={experiment}"])
    assert found.problems == []
    assert validate(found.cfg, resolve_name(ENTRIES[entry].settings), rules=False) == []
    with initialize_entry(entry):
        hydra = compose(PRIMARY[entry], [f"experiment={experiment}"], return_hydra_config=True).hydra
        for key, value in (hydra.sweeper.params or {}).items():
            (override,) = OverridesParser.create().parse_overrides([f"{key}={value}"])
            if key.startswith(("model@", "method")):
                for choice in override.sweep_string_iterator() if override.is_sweep_override() else [value]:
                    compose(PRIMARY[entry], [f"experiment={experiment}", f"{key}={choice}"])


@pytest.mark.parametrize("entry", PRIMARY)
def test_tables_ask_for_what_rows_have(entry):
    specs = {name: spec for name, spec in load_specs(CONFIG / "table").items() if spec.entry == entry}
    assert specs
    for spec in specs.values():
        assert spec.command.startswith(f"python main_{entry}.py")
        asked = {metric.metric or name for name, metric in spec.metrics.items()}
        asked |= {name for metric in spec.metrics.values() for name in metric.min_value}
        assert asked <= MEASURED, f"{spec.name}: no row has {asked - MEASURED}"
        for cell in spec.published:
            assert set(spec.keys) <= set(cell), spec.name
