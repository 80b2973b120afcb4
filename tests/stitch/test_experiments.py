"""Every experiment of stitching takes two steps on noise of its images' shape; tables name what fills them."""

from __future__ import annotations

import numpy as np
import pytest

from recombine import models
from recombine.cli.entries import register_papers
from recombine.core.results import read_rows
from recombine.core.settings import to_dict
from recombine.report.spec import load_specs, matches
from recombine.run.config import build
from recombine.run.launch import launch
from recombine.stitch import recipe
from recombine.stitch.loading import parent_nodes
from recombine.stitch.search.space import Budget, Space
from tests import sweeps
from tests.composing import composed

register_papers()

FOLDER = sweeps.CONFIG / "experiment" / "stitch"
EXPERIMENTS = sweeps.experiments("stitch")
TABLES = load_specs(sweeps.CONFIG / "table" / "stitch")
OWN = {"resnet8-mnist-s0": "resnet8", "cnn-mnist-s0": "cnn", "lab-part1": "resnet8", "lab-part2": "resnet8"}
"""Networks that the user trains, and what they are."""


def config(experiment, changes=None, more=()):
    """The first job of the sweep with these values instead, and more overrides."""
    job = {key: values[0] for key, values in sweeps.choices("stitch", experiment).items()} | (changes or {})
    return composed("stitch", f"experiment=stitch/{experiment}", *(f"{k}={v}" for k, v in job.items()), *more)


def check_job(experiment, job):
    cfg = config(experiment, job)
    # a search that does not know the settings of the experiment refuses them
    budget = Budget(cfg.budget, cfg.budget_unit)
    search = build(cfg.search, space=Space(np.array([2, 2, 3]), 1.0), budget=budget, seed=0)
    assert search.name == recipe.cell(cfg)["search"]
    build(cfg.method)
    assert cfg.a.name and cfg.b.name


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_the_first_job_of_the_sweep_composes(experiment):
    check_job(experiment, {key: values[0] for key, values in sweeps.choices("stitch", experiment).items()})


@pytest.mark.slow
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_choice_of_the_sweep_composes(experiment):
    for key, values in sweeps.choices("stitch", experiment).items():
        for value in values if key != "seed" else values[:1]:
            check_job(experiment, {key: value})


@pytest.mark.parametrize("experiment", [name for name in EXPERIMENTS if name.startswith("imagenet")])
def test_imagenet_parents_look_at_the_same_pixels_and_are_pinned(experiment):
    cfg = config(experiment)
    assert to_dict(cfg.a) | {"name": None} == to_dict(cfg.b) | {"name": None} and cfg.a.size == 224
    assert all(parent.name.startswith("timm:") and "." in parent.name for parent in (cfg.a, cfg.b))
    assert cfg.batch_size * cfg.engine.max_steps == 3 * 16384 and cfg.search_data.source == "folder"


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_the_head_says_how_to_run_it_and_which_table_it_fills(experiment):
    head = [line for line in (FOLDER / f"{experiment}.yaml").read_text().splitlines() if line.startswith("#")]
    assert any(f"main_stitch.py experiment=stitch/{experiment} " in line for line in head)
    named = [word.removeprefix("stitch/") for line in head if "scripts/table.py" in line for word in line.split()]
    assert any(name in TABLES for name in named)


@pytest.mark.parametrize("table", TABLES)
def test_commands_of_a_table_measure_its_cells(table):
    spec = TABLES[table]
    for cell in spec.expected_cells():
        overrides = dict(word.split("=", 1) for word in spec.command.format(**cell, seed=52).split() if "=" in word)
        found = recipe.cell(config(overrides.pop("experiment").removeprefix("stitch/"), overrides))
        assert matches(found, cell) and matches(found, spec.where), f"{overrides} measures {found}"


def test_the_tables_of_imagenet_expect_what_the_experiments_run():
    run = {}
    for experiment in EXPERIMENTS:
        if experiment.startswith("imagenet") and not experiment.endswith(("population", "sweep")):
            for search in sweeps.choices("stitch", experiment)["search"]:
                cell = recipe.cell(config(experiment, {"search": search}))
                run.setdefault(cell["a"], set()).add((search, str(cell["population"])))
            assert sweeps.choices("stitch", experiment)["seed"] == [
                str(seed) for seed in TABLES["searches_imagenet_a"].seeds
            ]
    for pair in "ab":
        spec = TABLES[f"searches_imagenet_{pair}"]
        assert {(cell["search"], cell["population"]) for cell in spec.expected_cells()} == run[spec.where["a"]]


def jobs():
    """The first job of each experiment; slow are those of ImageNet's size."""
    for experiment in EXPERIMENTS:
        if experiment.endswith("segmentation"):
            continue  # see test_segmentation.py
        marks = [pytest.mark.slow] if experiment.startswith("imagenet") else []
        yield pytest.param(experiment, marks=marks, id=experiment)


@pytest.mark.parametrize("experiment", list(jobs()))
def test_two_steps(tmp_path, experiment):
    whole = config(experiment)
    given_parents = [{"name": node} if isinstance(node, str) else to_dict(node) for node in parent_nodes(whole)]
    for seed, node in enumerate(given_parents):
        name = node["name"].removeprefix("timm:")
        given = {**node, "name": OWN.get(name, name), "weights": None}
        given |= {"architecture": node["name"]} if name != node["name"] else {}
        models.save(models.build(given, classes=3, seed=seed), tmp_path / "weights" / f"{name}.safetensors", {})
    few = 60 if whole.get("search_data") else 200  # a tenth of a fifth of them is searched on
    sizes = ["dataset.classes=3", f"dataset.samples={few}", f"dataset.image_size={whole.a.size or 32}"]
    more = ["dataset=fake", "dataset.fraction=1", *sizes, "loader=torch", "loader.workers=0"]
    more += ["logger=none", "device=cpu"]
    more += [f"{root}_root={tmp_path / root}" for root in ("data", "cache", "output", "weights")]
    more += ["batch_size=2", "eval_batch_size=4", "engine.max_steps=2", "engine.max_eval_batches=1"]
    more += ["matching.max_matches=3", "method.init_images=8", "budget=15", "eval_batch_networks=4"]
    more += ["bn_images=4"] if whole.bn_images else []
    more += [f"num_saved={len(given_parents) - 2}"]  # the next cross takes a file
    if whole.get("search_data"):
        more += ["dataset@search_data=fake", "search_data.test_fraction=1"]
        more += [size.replace("dataset", "search_data") for size in sizes]
    more += ["search.population=4"] if "population" in whole.search else []
    launch(recipe, config(experiment, more=more))
    rows = read_rows(tmp_path / "output")
    assert len(rows) == len(given_parents) - 1
    for row in rows:
        assert row.status == "ok" and row.metrics["requests"] == 15 and row.metrics["pairs"] == 3
        assert ("single_stitch_accuracy" in row.series) == (row.cell["search"] == "single_stitch_sweep")
