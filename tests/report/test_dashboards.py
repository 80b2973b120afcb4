"""Workspaces and reports of wandb name what runs log; sweeps of wandb's start commands that work."""

import json
import sys
from pathlib import Path
from pkgutil import resolve_name

import pytest
import yaml
from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

from recombine.cli import dashboards
from recombine.cli.entries import ENTRIES
from recombine.cli.overrides import compose_all
from recombine.core.files import CONFIG_DIR
from recombine.core.settings import given_settings
from recombine.run.config import validate

ROOT = Path(__file__).parents[2]


def _ends(node):
    return [node[key] for key in ("value", "min", "max") if key in node]


@pytest.mark.parametrize("file", sorted((ROOT / "sweeps").glob("*.yaml")), ids=lambda file: file.stem)
def test_sweeps_start_commands_that_work(file):
    sweep = yaml.safe_load(file.read_text())
    assert sweep["metric"] == {"name": "final/objective", "goal": "maximize"}
    program, entry, flags = sweep["command"]
    assert (program, entry, flags) == ("${program}", file.stem, "${args_no_hyphens}")
    assert hasattr(resolve_name(ENTRIES[entry].recipe), "OBJECTIVE")
    for pick in (0, -1):  # the first and the last of all values
        choices = {key: [*node.get("values", ()), *_ends(node)] for key, node in sweep["parameters"].items()}
        given = {key: {"value": values[pick]} for key, values in choices.items()}
        words = create_sweep_command_args({"args": given})
        found = compose_all(str(CONFIG_DIR), ENTRIES[entry].config, words["args_no_hyphens"])
        schema = resolve_name(ENTRIES[entry].settings)
        assert found.problems + validate(found.cfg, schema, rules=False) == []
        assert schema.model_validate(given_settings(found.cfg)).check_search() == []  # no test image chooses


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of wandb-workspaces itself
def test_workspaces_and_reports_are_built_without_a_server(tmp_path, monkeypatch, flip_rows):
    pytest.importorskip("wandb_workspaces")
    from recombine.core.results import write_rows

    write_rows(tmp_path / "rows" / "a", flip_rows)
    words = ["--rows", str(tmp_path / "rows"), "--out", str(tmp_path / "out"), "--entry", "flips", "transfer"]
    monkeypatch.setattr(sys, "argv", ["dashboards", *words])
    dashboards.main()
    space = json.loads((tmp_path / "out" / "transfer.json").read_text())
    text = json.dumps(space)
    names = ("final/transfer_delta", "test/transfer_delta", "train/loss", "media/rows", '"transfer"')
    assert all(name in text for name in names)
    report = json.loads((tmp_path / "out" / "flips" / "pairs.json").read_text())
    assert f"{flip_rows[0].metrics['rho_pos']:.2f}" in json.dumps(report)
    tables = [file for entry in ("flips", "transfer") for file in (CONFIG_DIR / "table" / entry).glob("*.yaml")]
    assert len(list((tmp_path / "out").rglob("*.json"))) == 2 + len(tables)
