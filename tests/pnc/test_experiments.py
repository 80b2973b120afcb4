"""Every experiment of cloning takes two steps on noise of its images' shape; a table's commands fill its cells."""

from __future__ import annotations

import itertools
import shlex

import pytest
import yaml
from omegaconf import OmegaConf, open_dict

from recombine import models
from recombine.cli.entries import register_papers
from recombine.core.results import read_rows
from recombine.core.settings import find_problems, to_dict
from recombine.core.types import Row
from recombine.data.settings import DatasetSettings
from recombine.pnc import recipe
from recombine.pnc.claims import name_pairs
from recombine.pnc.sources import list_sources
from recombine.pretrain.recipe import save_name
from recombine.report.spec import excluded, load_specs, matches
from recombine.run.launch import launch
from tests import sweeps
from tests.composing import composed

register_papers()

FOLDER = sweeps.CONFIG / "experiment" / "pnc"
EXPERIMENTS = sweeps.experiments("pnc")
SPECS = load_specs(sweeps.CONFIG / "table" / "pnc")
TABLES = {name: spec for name, spec in SPECS.items() if spec.command}
QUICK = ["loader=torch", "loader.workers=0", "logger=none", "device=cpu", "engine=debug", "batch_size=8"]
QUICK += ["clone=[0,1]", "lime.grid=4", "lime.num_fit=40", "lime.num_train=2", "similarity={images:2,vectors:40}"]
QUICK += ["select_fraction=0.3", "stage_epochs=1", "tuning_epochs=1", "scratch.epochs=1"]


def first_job(experiment):
    swept = sweeps.choices("pnc", experiment).items()
    return composed("pnc", f"experiment=pnc/{experiment}", *(f"{key}={values[0]}" for key, values in swept))


def jobs(experiment, given):
    """The config of each job, one seed, where `given` replaces swept values; of clones as large as another the first.

    It is one config that changes from job to job.
    """
    values = sweeps.choices("pnc", experiment) | {key: [value] for key, value in given.items()} | {"seed": ["0"]}
    cfg = first_job(experiment)
    if "clone" in values:
        values["clone"] = [*{text.count(","): text for text in reversed(values["clone"])}.values()]
    for method in values.pop("method", [None]):
        if method:
            cfg.method = composed("pnc", f"method={method}").method
        for job in itertools.product(*values.values()):
            with open_dict(cfg):
                for key, value in zip(values, job, strict=True):
                    OmegaConf.update(cfg, key, yaml.safe_load(value))
            yield cfg


def command_of(spec, cell):
    """The experiment that fills a cell, and what else its command says."""
    words = shlex.split(spec.command.format(**cell, seed=0))
    overrides = dict(word.split("=", 1) for word in words if "=" in word)
    return overrides.pop("experiment").removeprefix("pnc/"), overrides


def check_job(cfg):
    assert not [told for told in find_problems(recipe.SETTINGS, to_dict(cfg)) if "unknown setting" in told]
    nodes = [to_dict(cfg.dataset), *(source.data for source in list_sources(to_dict(cfg)))]
    cell = recipe.cell(cfg)
    assert cell["method"] == cfg.method.name
    nodes = nodes[: 1 if cell["method"] == "compose" else None]  # its source_data are images, no network's data
    assert {DatasetSettings.of(node).fraction for node in nodes} == {cell["fraction"]}
    known = [label for node in nodes for label in node["class_subset"] or ()]
    assert all(node["class_subset"] or node["label_map"] for node in nodes)  # or all that the network knows
    assert len(known) == len({*known}) and cfg.lime.num_fit > 2 * cfg.lime.grid**2


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_the_first_job_of_the_sweep_composes(experiment):
    check_job(first_job(experiment))


@pytest.mark.slow
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_choice_of_the_sweep_composes(experiment):
    for key, values in sweeps.choices("pnc", experiment).items():
        for value in values if key == "method" else values[:1]:
            check_job(composed("pnc", f"experiment=pnc/{experiment}", f"{key}={value}"))


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_the_head_says_how_to_run_it_how_long_it_takes_and_which_table_it_fills(experiment):
    head = [line for line in (FOLDER / f"{experiment}.yaml").read_text().splitlines() if line.startswith("#")]
    assert any(f"main_pnc.py experiment=pnc/{experiment} " in line for line in head)
    named = [word.removeprefix("pnc/") for line in head if "scripts/table.py" in line for word in line.split()]
    assert any(name in SPECS for name in named)
    assert experiment == "mnist" or any(line.startswith("# Time: ") for line in head)


@pytest.mark.parametrize("table", TABLES)
def test_commands_of_a_table_measure_its_cells(table):
    spec = TABLES[table]
    measured = {}
    for cell in spec.expected_cells():
        name, overrides = command_of(spec, cell)
        assert name in EXPERIMENTS
        key = (name, *sorted(overrides.items()))
        if key not in measured:
            rows = [Row(recipe.cell(cfg)) for cfg in jobs(name, overrides)]
            measured[key] = [
                row.cell for row in (name_pairs(rows) if spec.derived.get("function") == "pnc_pairs" else rows)
            ]
        here = [found for found in measured[key] if matches(found, cell)]
        assert here, f"{key} does not measure {cell}"
        assert all(matches(found, spec.where) for found in here)


def sources_of_table_6(number):
    """Each job's sources and cell; one seed is enough."""
    (cfg,) = jobs(f"table6_cifar100_high_{number}", {})
    return list_sources(to_dict(cfg)), recipe.cell(cfg)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_sources_of_table_6_share_the_other_half_and_give_ten_classes_each(number):
    found, cell = sources_of_table_6(number)
    assert cell["sources"] == len(found) == number and cell["classes"] == 10 * number
    assert [label for source in found for label in source.data["class_subset"]] == list(range(50))
    assert [source.clone for source in found] == [list(range(10))] * number


@pytest.mark.parametrize("number", [2, 3])
def test_commands_in_the_head_train_the_sources_of_table_6(number):
    text = (FOLDER / f"table6_cifar100_high_{number}.yaml").read_text().replace("\\\n#", "")
    lines = [shlex.split(line) for line in text.splitlines() if "main_pretrain.py" in line and "class_subset" in line]
    trained = [composed("pretrain", *(word for word in line if "=" in word and "<" not in word)) for line in lines]
    found, _ = sources_of_table_6(number)
    assert [save_name(cfg) for cfg in trained] == [source.name for source in found]
    for cfg, source in zip(trained, found, strict=True):
        used, node = DatasetSettings.of(source.data), DatasetSettings.of(to_dict(cfg.dataset))
        assert (node.source, node.folder, node.class_subset) == (used.source, used.folder, used.class_subset)
        assert cfg.model.name == source.name.partition("-")[0] and node.fraction == 1


@pytest.mark.parametrize("table", sorted(TABLES.keys() - {"overview", "table6"}))
def test_no_other_table_takes_several_sources(table):
    spec = TABLES[table]
    cells = [sources_of_table_6(number)[1] for number in (2, 3)]
    assert all(excluded(cell, spec.exclude) or not matches(cell, spec.where) for cell in cells)


def test_the_halves_of_large_sets_are_whole():
    for name, classes in (("cifar100", 100), ("tiny_imagenet", 200)):
        halves = [
            yaml.safe_load((sweeps.CONFIG / f"dataset/{name}_{half}.yaml").read_text()) for half in ("low", "high")
        ]
        assert [c for half in halves for c in half["class_subset"]] == list(range(classes))
        assert [half["source"] for half in halves] == [name, name]


def first_jobs():
    """The first job of each experiment, and of each method the first of all; slow are large networks."""
    seen = set()
    for experiment in EXPERIMENTS:
        for position, method in enumerate(sweeps.choices("pnc", experiment)["method"]):
            small = experiment.endswith("mnist_high")
            if position == 0 or (small and method not in seen):
                quick = experiment == "table1_mnist_high" and method in ("ewc", "joint_full", "pnc_fixed")
                quick |= experiment in ("figure2_mnist_high", "table6_cifar100_high_2", "compose_cifar10_high")
                marks = () if quick else pytest.mark.slow
                yield pytest.param(experiment, method, marks=marks, id=f"{experiment}-{method}")
            seen.add(method)


def fake_data(names, side, several):
    """Overrides that give each source, and the target after them, five classes of noise."""
    count = 5 * (len(names) + 1)
    fives = [list(range(start, start + 5)) for start in range(0, count, 5)]
    settings = {"image_size": side, "samples": 12 * count, "classes": count}
    subsets = {"dataset": fives[-1], "source_data": fives[0]}
    found = ["dataset=fake", "dataset@source_data=fake"]
    for key, subset in subsets.items():
        node = settings | {"fraction": 1, "class_subset": subset}
        found += [f"{key}.{name}={value}" for name, value in node.items()]
    if several:
        shared = [f"{name}:{value}" for name, value in {"dataset": "fake", "clone": "[0,1]", **settings}.items()]
        entries = zip(names, fives, strict=False)
        texts = [",".join([f"name:{name}", f"class_subset:{five}", *shared]) for name, five in entries]
        found.append("sources=[" + ",".join(f"{{{text}}}" for text in texts) + "]")
    return found


@pytest.mark.parametrize(("experiment", "method"), list(first_jobs()))
def test_two_steps(tmp_path, experiment, method):
    whole = composed("pnc", f"experiment=pnc/{experiment}")
    side = 64 if "tiny" in experiment else 32
    names = [source.name for source in list_sources(to_dict(whole))]
    for name in (whole.target.name, *names):
        network = "cnn" if experiment.startswith("table6") else name.partition("-")[0]  # one training for each source
        node = yaml.safe_load((sweeps.CONFIG / "model" / f"{network}.yaml").read_text()) | {"weights": None}
        own = name == whole.target.name
        known = [f"class {label}" for label in (range(5, 10) if own else range(5))]
        model = models.build({**node, "size": side}, classes=5, seed=int(not own))
        if own and method == "compose":  # so that a network without training gives the class at all
            list(model.parameters())[-1].data -= 100
        models.save(model, tmp_path / f"{name}.safetensors", {"class_names": known})
    data = fake_data(names, side, several=bool(whole.sources))
    if whole.source_data.label_map:  # five classes of noise in place of ImageNet's
        data += ["source_data.label_map=null", "source.classes=5", f"source.size={side}"]
    swept = {
        key: values[0]
        for key, values in sweeps.choices("pnc", experiment).items()
        if key not in ("clone", "dataset.fraction", "method.networks")
    }
    chosen = [f"{key}={value}" for key, value in (swept | {"method": method}).items()]
    roots = [f"weights_root={tmp_path}", *(f"{root}_root={tmp_path / root}" for root in ("data", "cache", "output"))]
    one = ["clone=[0]"] if method == "compose" else []
    launch(recipe, composed("pnc", f"experiment=pnc/{experiment}", *chosen, *roots, *QUICK, *data, *one))
    (row,) = read_rows(tmp_path / "output")
    assert row.status == "ok" and row.cell["method"] == method and row.cell["classes"] == (1 if one else 2 * len(names))
    if len(names) > 1:
        columns = [key for key in TABLES["table6"].metrics if not key.startswith("accuracy_cloned_")]
        columns += [f"accuracy_cloned_{number}" for number in range(1, len(names) + 1)]
        assert all(0 <= row.metrics[key] <= 100 for key in columns)
    if row.cell["last_stage"] == "localize":
        assert 0 <= row.metrics["module_accuracy"] <= 100
    else:
        assert 0 <= row.metrics["accuracy_average"] <= 100 and row.metrics["flops_ratio"] >= 1
