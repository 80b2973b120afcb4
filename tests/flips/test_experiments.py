"""Every experiment of flips and pretrain composes, and no setting in it is unknown or of a wrong type."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from src.core.config import validate

CONFIG = Path(__file__).parents[2] / "config"
ENTRIES = {"flips": "prediction_flips/flips", "pretrain": "pretrain/pretrain"}
EXPERIMENTS = [
    (entry, path.stem) for entry in ENTRIES for path in sorted((CONFIG / "experiment" / entry).glob("*.yaml"))
]


@pytest.mark.parametrize(("entry", "name"), EXPERIMENTS)
def test_experiment_composes(entry, name):
    overrides = [f"experiment={entry}/{name}", *(["model.name=timm:resnet18"] if entry == "pretrain" else [])]
    with initialize_config_dir(str(CONFIG), version_base="1.3"):
        cfg = compose(ENTRIES[entry], overrides)
    assert validate(cfg) == []
    assert cfg.dataset.name != "digits", "the experiment's dataset wins over the entry's default"
    head = (CONFIG / "experiment" / entry / f"{name}.yaml").read_text()
    assert f"python main_{entry}.py experiment={entry}/{name}" in head
    assert "Time:" in head and "Published" in head
