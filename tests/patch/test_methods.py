"""Methods by their config node: every setting shows in a row's names, wrong ones are told before data are opened."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hydra import compose

from recombine.cli.search_path import initialize_entry
from recombine.patch import methods, recipe

CONFIG = str(Path(__file__).parents[2] / "config")


def composed(*overrides):
    with initialize_entry("patch"):
        return compose("patch/patch", list(overrides))


NAMES = {  # of rows that exist: these stay
    "delta": ("delta", "1"),
    "delta_2": ("delta", "2"),
    "delta_all": ("delta", "all"),
    "fc": ("fc", "none"),
    "finetune": ("finetune", "none"),
    "paint": ("paint", "none"),
    "parallel_adapter": ("parallel_adapter", "none"),
    "series_adapter": ("series_adapter", "none"),
    "bn_adapt": ("bn_affine", "none"),
    "all_skips": ("delta_all_ones_no_bn", "all"),
    "all_skips_bn": ("delta_all_ones", "all"),
    "all_skips_learnable": ("delta_all_learned_no_bn", "all"),
    "all_skips_learnable_bn": ("delta_all_learned", "all"),
    "all_skips_random": ("delta_all_random", "all"),
    "learnable_skips": ("delta_existing_learned_no_bn", "all"),
}


@pytest.mark.parametrize("method", NAMES)
def test_names_of_the_methods(method):
    cell = recipe.cell(composed(f"method={method}"))
    assert (cell["method"], cell["modules"]) == NAMES[method]


DELTAS = ["weights=random_fixed", "skips=new", "skips=existing", "norm=none", "norm=every_subblock", "strides=[1,1]"]
DELTAS += ["strides=[1,2]", "alpha_init=base", "input_projection=drop", "budget=100000", "modules=2"]
LEARNED = [variant for variant in DELTAS if "strides" not in variant]  # these have no module to stride
PAINTS = ["select=mean", "alphas=[0,1]", "select=fixed", "select=fixed method.alpha=0.5", "statistics=recalibrated"]


@pytest.mark.parametrize(
    ("method", "variants"), [("delta", DELTAS), ("all_skips_learnable_bn", LEARNED), ("paint", PAINTS)]
)
def test_variants_have_cells_of_their_own(method, variants):
    overrides = [[f"method={method}"], *([f"method={method}", *f"method.{v}".split()] for v in variants)]
    cells = [tuple(sorted(recipe.cell(composed(*words)).items())) for words in overrides]
    assert len(set(cells)) == len(cells)


WRONG = [
    ("delta", "strides=[2]", r"method.strides=\[2\]: two numbers of at least 1"),
    ("delta", "strides=2", r"method.strides=2: two numbers of at least 1"),
    ("delta", "strides=[0,2]", r"method.strides=\[0, 2\]: two numbers of at least 1"),
    ("delta", "budget=abc", r"method.budget=abc: a whole number of parameters"),
    ("delta", "modules=true", r"method.modules=True: a number of blocks"),
    ("bn_adapt", "mode=best", r"method.mode=best: one of affine, dua"),
    ("parallel_adapter", "position=left", r"method.position=left: one of parallel, series"),
    ("paint", "select=best", r"method.select=best: one of harmonic_mean, mean, fixed"),
    ("paint", "alphas=[0,2]", r"method.alphas=\[0, 2\]: a list of numbers from 0 to 1"),
    ("paint", "alphas=abc", r"method.alphas=abc: a list of numbers from 0 to 1"),
    ("paint", "alpha=x", r"method.alpha=x: a number from 0 to 1"),
    (
        "delta",
        "_target_=recombine.engine.method.Supervised",
        r"method recombine.engine.* is no way to patch",
    ),
]


@pytest.mark.parametrize(("method", "override", "message"), WRONG)
def test_wrong_settings_are_told_without_opening_anything(method, override, message):
    cfg = composed(f"method={method}", *([f"method.{override}"] if override else []))
    (problem,) = methods.problems(cfg.method)
    assert re.match(message, problem), problem
    assert problem in recipe.check(cfg)


@pytest.mark.parametrize("method", NAMES)
def test_the_methods_as_they_are_have_no_problem(method):
    assert methods.problems(composed(f"method={method}").method) == []


@pytest.mark.parametrize(
    ("override", "problems"), [("routing=null", 0), ("routing=confidence", 0), ("routing=guess", 1)]
)
def test_one_way_of_routing_is_a_list_of_one(override, problems):
    found = [text for text in recipe.check(composed(override)) if "routing" in text]
    assert len(found) == problems and all("routing=guess:" in text for text in found)


def test_one_task_is_a_list_of_one():
    assert not [text for text in recipe.check(composed("tasks=digits")) if "tasks" in text]
    assert any("no dataset 'mnits'" in text for text in recipe.check(composed("tasks=mnits")))
