"""Every experiment of flips and pretrain composes, and no setting in it is unknown or of a wrong type."""

from pathlib import Path
from pkgutil import resolve_name

import pytest

from recombine.cli.entries import ENTRIES as SPECS
from recombine.run.config import validate
from tests.composing import composed

CONFIG = Path(__file__).parents[2] / "config"
ENTRIES = ("flips", "pretrain")
EXPERIMENTS = [
    (entry, path.stem) for entry in ENTRIES for path in sorted((CONFIG / "experiment" / entry).glob("*.yaml"))
]


@pytest.mark.parametrize(("entry", "name"), EXPERIMENTS)
def test_experiment_composes(entry, name):
    overrides = [f"experiment={entry}/{name}", *(["model.name=timm:resnet18"] if entry == "pretrain" else [])]
    cfg = composed(entry, *overrides)
    assert validate(cfg, resolve_name(SPECS[entry].settings), rules=False) == []
    assert cfg.dataset.name != "digits", "the experiment's dataset wins over the entry's default"
    head = (CONFIG / "experiment" / entry / f"{name}.yaml").read_text()
    assert f"python main_{entry}.py experiment={entry}/{name}" in head
    assert "Time:" in head and "Published" in head
