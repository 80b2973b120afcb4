"""Every experiment of patch takes two steps on noise of its images' shape; tables name the commands that fill them."""

from __future__ import annotations

import itertools
import shutil
from functools import partial

import pytest
from omegaconf import OmegaConf

from recombine import models
from recombine.core.results import read_rows
from recombine.core.settings import to_dict
from recombine.data.settings import DatasetSettings
from recombine.patch import recipe
from recombine.patch.settings import DENSE, END_TO_END, UNTRAINED, task_nodes
from recombine.report.spec import load_specs, matches
from recombine.run.launch import launch
from tests import composing, sweeps

FOLDER = sweeps.CONFIG / "experiment" / "patch"
EXPERIMENTS = sweeps.experiments("patch")
TABLES = load_specs(sweeps.CONFIG / "table" / "patch")
QUICK = ["loader=torch", "loader.workers=0", "logger=none", "device=cpu", "batch_size=4", "eval_batch_size=10"]
QUICK += ["engine.max_steps=2", "engine.max_eval_batches=1", "dataset=fake", "dataset.fraction=1", "dataset.classes=10"]


def first(experiment, **chosen):
    """The first job of the sweep with these values instead, keys with a dot written with two underscores."""
    job = {key: values[0] for key, values in sweeps.choices("patch", experiment).items()}
    return job | {key.replace("__", "."): value for key, value in chosen.items()}


composed = partial(composing.composed, "patch")


def nodes_of(cfg):
    settings = to_dict(cfg)
    return task_nodes(settings["tasks"], settings["task"], settings["method"])


def config(experiment, **chosen):
    return composed(f"experiment=patch/{experiment}", *(f"{k}={v}" for k, v in first(experiment, **chosen).items()))


def cells(experiment, given):
    """The cells that the sweep measures where `given` are swept keys with another list of values."""
    values = sweeps.choices("patch", experiment) | given

    def each(key):
        return [config(experiment, **({key: value} if value else {})) for value in values.get(key, [None])]

    named = [{"model": name.replace("\\", "")} for name in values.get("model.name", ())]
    named = named or [{"model": cfg.model.name} for cfg in each("model")]
    listed = [[node["name"] for node in nodes_of(cfg)] for cfg in each("tasks")]
    for model, method, protocol, found in itertools.product(named, each("method"), each("protocol"), listed):
        cell = recipe.cell(method) | model | {"protocol": protocol.protocol}
        if protocol.protocol in END_TO_END:
            for cfg, adapted in itertools.product(each("regularizer"), each("adaptation")):
                names = cell | {key: value for key, value in recipe.cell(cfg).items() if key == "regularizer"}
                names |= {"fraction": values["task.fraction"][0]} if "task.fraction" in values else {}
                zero_shot = protocol.protocol == "zero_shot"
                found_rows = {adapted.adaptation, "none" if adapted.adaptation == "adda" else adapted.adaptation}
                for task, adaptation in itertools.product(found, found_rows):
                    yield names | {"task": task} | ({"adaptation": adaptation} if zero_shot else {})
        elif protocol.protocol in ("single", *DENSE):
            yield from ({**cell, "task": task} for task in found)
        else:
            yield {**cell, "tasks": "-".join(found)}


def check_job(experiment, **job):
    cfg = config(experiment, **{key.replace(".", "__"): value for key, value in job.items()})
    assert recipe.cell(cfg)["method"]
    assert all(DatasetSettings.of(node) for node in nodes_of(cfg))


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_the_first_job_of_the_sweep_composes(experiment):
    check_job(experiment, **{key: values[0] for key, values in sweeps.choices("patch", experiment).items()})


@pytest.mark.slow
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_choice_of_the_sweep_composes(experiment):
    for key, values in sweeps.choices("patch", experiment).items():
        for value in values if key in ("model", "method", "protocol", "tasks") else values[:1]:
            check_job(experiment, **{key: value})


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_the_head_says_how_to_run_it_and_which_table_it_fills(experiment):
    head = [line for line in (FOLDER / f"{experiment}.yaml").read_text().splitlines() if line.startswith("#")]
    assert any(f"main_patch.py experiment=patch/{experiment} " in line for line in head)
    named = [word.removeprefix("patch/") for line in head if "scripts/table.py" in line for word in line.split()]
    assert any(name in TABLES for name in named)


@pytest.mark.parametrize("table", TABLES)
def test_commands_of_a_table_measure_its_cells(table):
    spec = TABLES[table]
    measured = {}
    for cell in spec.expected_cells():
        overrides = dict(word.split("=", 1) for word in spec.command.format(**cell, seed=0).split() if "=" in word)
        name = overrides.pop("experiment").removeprefix("patch/")
        assert name in EXPERIMENTS
        assert overrides.keys() <= sweeps.choices("patch", name).keys()
        key = (name, *sorted(overrides.items()))
        if key not in measured:
            measured[key] = list(cells(name, {swept: [value] for swept, value in overrides.items()}))
        here = [found for found in measured[key] if matches(found, cell)]
        assert here, f"{key} does not measure {cell}"
        cfg = config(name)
        settings = {key: OmegaConf.select(cfg, path) for key, path in spec.derived.get("keys", {}).items()}
        assert all(matches(found | settings, spec.where) for found in here)


def test_tables_2_and_10_share_runs():
    for method in ("delta", "paint"):
        small, large = (config(f"{table}_{method}", method=method) for table in ("table2", "table10"))
        assert small == large


QUICK_VARIANTS = ("learnable_skips", "all_skips_bn")


def jobs():
    """The first job of each experiment, and for each value of model, method and protocol that is new the first with it.

    Slow are those of ImageNet's size and most of the variants.
    """
    seen = set()
    for experiment in EXPERIMENTS:
        swept = [key for key in sweeps.choices("patch", experiment) if key not in ("seed", "tasks")]
        whole, table = sweeps.written("patch", experiment), experiment.startswith("table")
        if whole.protocol in DENSE:
            continue  # needs masks or boxes: test_segmentation, test_detection
        same = {"table": table, "protocol": whole.protocol, "size": OmegaConf.select(whole, "model.size")}
        for key, value in [(None, None), *((k, v) for k in swept for v in sweeps.choices("patch", experiment)[k])]:
            job = first(experiment, **({key.replace(".", "__"): value} if key else {}))
            kind = tuple(sorted((same | {k: job[k] for k in swept}).items()))
            if key is None or kind not in seen:
                quick = not table and (key is None or (experiment == "cifar10_ablation" and value in QUICK_VARIANTS))
                name = f"{experiment}-{value}".replace("\\", "") if key else experiment
                yield pytest.param(experiment, job, marks=() if quick else pytest.mark.slow, id=name)
            seen.add(kind)


@pytest.mark.parametrize(("experiment", "job"), list(jobs()))
def test_two_steps(tmp_path, experiment, job):
    whole = composed(f"experiment=patch/{experiment}", *(f"{key}={value}" for key, value in job.items()))
    side = whole.model.size or 32
    node = dict(whole.model)
    if node["name"].startswith("timm:"):
        node |= {"architecture": node["name"]}
    if whole.protocol not in UNTRAINED:
        base = models.build({**node, "weights": None}, classes=10)
        models.save(base, tmp_path / "weights" / f"{node['name'].removeprefix('timm:')}.safetensors", {})
    classes = 10 if whole.protocol == "zero_shot" else 3  # those of the source
    names = ("one", "two") if len(nodes_of(whole)) > 1 else ("one",)
    fakes = ",".join(f"{{name:{n},dataset:fake,image_size:{side},samples:40,classes:{classes}}}" for n in names)
    roots = [f"{root}_root={tmp_path / root}" for root in ("data", "cache", "output", "weights")]
    swept = [f"{key}={value}" for key, value in job.items() if key != "tasks"]
    data = [f"dataset.image_size={side}", "dataset.samples=20", "dataset.test_fraction=1.0", f"tasks=[{fakes}]"]
    cfg = composed(f"experiment=patch/{experiment}", *swept, *roots, *QUICK, *data)
    launch(recipe, cfg)
    rows = read_rows(tmp_path / "output")
    assert rows and all(row.status == "ok" and "accuracy_patched" in row.metrics for row in rows)
    shutil.rmtree(tmp_path / "weights", ignore_errors=True)
