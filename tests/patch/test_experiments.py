"""Every experiment of config/experiment/patch takes two steps on noise of its images' shape, as its first job would."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser

from src import models
from src.core.results import read_rows
from src.core.run import launch
from src.patch import recipe

CONFIG = Path(__file__).parents[2] / "config"
EXPERIMENTS = sorted(path.stem for path in (CONFIG / "experiment" / "patch").glob("*.yaml"))
QUICK = ["loader=torch", "loader.workers=0", "wandb=none", "device=cpu", "batch_size=4", "eval_batch_size=10"]
QUICK += ["engine.max_steps=2", "engine.max_eval_batches=1", "dataset=fake", "dataset.samples=20", "routing=[]"]


def jobs(experiment):
    """All overrides of the experiment's sweep, a list for each swept key."""
    params = yaml.safe_load((CONFIG / "experiment/patch" / f"{experiment}.yaml").read_text())["hydra"]["sweeper"][
        "params"
    ]
    overrides = [OverridesParser.create().parse_override(f"{key}={value}") for key, value in params.items()]
    return [
        [f"{o.get_key_element()}={v}" for v in o.sweep_string_iterator()] if o.is_sweep_override() else [o.input_line]
        for o in overrides
    ]


def composed(*overrides):
    with initialize_config_dir(str(CONFIG), version_base="1.3"):
        return compose("patch/patch", list(overrides))


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_job_of_the_sweep_composes(experiment):
    choices = jobs(experiment)
    for position, options in enumerate(choices):
        for option in options:
            chosen = [option if k == position else other[0] for k, other in enumerate(choices)]
            assert recipe.cell(composed(f"experiment=patch/{experiment}", *chosen))["method"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Checkpoints of ten classes under the names that the first jobs ask for."""
    folder = tmp_path_factory.mktemp("weights")
    for name in ("timm:resnet18.tv_in1k", "timm:resnet18.a1_in1k"):
        model = models.build({"name": name, "architecture": name, "weights": None}, classes=10)
        models.save(model, folder / f"{name.removeprefix('timm:')}.safetensors", {})
    models.save(models.build({"name": "resnet20", "weights": None}, classes=10), folder / "resnet20.safetensors", {})
    return folder


LARGE = [pytest.param(name, marks=pytest.mark.slow) if name.startswith("table") else name for name in EXPERIMENTS]


@pytest.mark.parametrize("experiment", LARGE)
def test_two_steps_of_the_first_job(tmp_path, weights, experiment):
    roots = [f"{root}_root={tmp_path / root}" for root in ("data", "cache", "output")]
    first = [options[0] for options in jobs(experiment)]
    whole = composed(f"experiment=patch/{experiment}", *first)
    side = whole.model.size or 32
    fakes = ",".join(f"{{name:{n},dataset:fake,image_size:{side},samples:40,classes:3}}" for n in ("one", "two"))
    names = [word for word in first if not word.startswith("tasks=")]
    cfg = composed(
        f"experiment=patch/{experiment}",
        *roots,
        f"weights_root={weights}",
        *names,
        *QUICK,
        f"dataset.image_size={side}",
        f"tasks=[{fakes}]",
    )
    launch(recipe, cfg)
    rows = read_rows(tmp_path / "output")
    assert rows and all(row.status == "ok" and "accuracy_patched" in row.metrics for row in rows)
