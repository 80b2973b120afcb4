"""Methods by their config node: every setting shows in a row's names, wrong ones are told before data are opened."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from recombine import models
from recombine.core.builds import load_target
from recombine.core.settings import schema_of, to_dict
from recombine.patch import recipe, settings
from recombine.patch.patched import HeadOnly
from recombine.run.config import validate
from recombine.run.launch import check
from tests import composing

CONFIG = Path(__file__).parents[2] / "config"


composed = partial(composing.composed, "patch")


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
    "lora": ("lora_4", "none"),
    "lora_1": ("lora_1", "none"),
    "ssf": ("ssf", "none"),
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
DELTAS += ["modules=[layer1]", "modules=[layer1,layer3]"]
LEARNED = [variant for variant in DELTAS if "strides" not in variant]  # these have no module to stride
LORAS = ["rank=2", "alpha=8", "alpha=2"]
PAINTS = ["select=mean", "alphas=[0,1]", "select=fixed", "select=fixed method.alpha=0.5", "statistics=recalibrated"]


@pytest.mark.parametrize(
    ("method", "variants"),
    [
        ("delta", DELTAS),
        ("lora", ["rank=2", "alpha=8", "alpha=2"]),
        ("all_skips_learnable_bn", LEARNED),
        ("paint", PAINTS),
    ],
)
def test_variants_have_cells_of_their_own(method, variants):
    overrides = [[f"method={method}"], *([f"method={method}", *f"method.{v}".split()] for v in variants)]
    cells = [tuple(sorted(recipe.cell(composed(*words)).items())) for words in overrides]
    assert len(set(cells)) == len(cells)


def problems(*overrides):
    return check(recipe, composed(*overrides))


WRONG = [
    ("delta", "strides=[2]", r"method.strides=\[2\]: a list of 2 whole numbers of at least 1 is needed"),
    ("delta", "strides=2", r"method.strides=2: a list of 2 whole numbers"),
    ("delta", "strides=[0,2]", r"method.strides=\[0,2\]: a list of 2 whole numbers"),
    (
        "delta",
        "budget=abc",
        r"method.budget=abc: a whole number of at least 1, or null is needed, .* method.budget=100000",
    ),
    ("delta", "modules=true", r"method.modules=true: all or a whole number of at least 1"),
    ("delta", "norm=skip_sum method.skips=new", r"method.norm=skip_sum needs the existing skips: method.skips=all"),
    ("delta", "weight=ones", r"unknown setting method.weight: did you mean 'weights'"),
    ("bn_adapt", "mode=best", r"method.mode=best: one of affine, dua"),
    ("parallel_adapter", "position=left", r"method.position=left: one of parallel, series"),
    ("paint", "select=best", r"method.select=best: one of harmonic_mean, mean, fixed"),
    ("paint", "alphas=[0,2]", r"method.alphas=\[0,2\]: a list of numbers of at least 0 and at most 1"),
    ("paint", "alphas=abc", r"method.alphas=abc: a list of numbers of at least 0 and at most 1"),
    ("paint", "alpha=x", r"method.alpha=x: a number of at least 0 and at most 1"),
    (
        "delta",
        "_target_=recombine.engine.method.Supervised",
        r"method._target_=recombine.engine.* is not a patch method; method=delta is one",
    ),
]


@pytest.mark.parametrize(("method", "override", "message"), WRONG)
def test_wrong_settings_are_told_without_opening_anything(method, override, message):
    words = [word if word.startswith("method.") else f"method.{word}" for word in override.split()]
    (problem,) = [text for text in problems(f"method={method}", *(f"++{word}" for word in words)) if "method." in text]
    assert re.match(message, problem), problem


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("routing=null", None),
        ("routing=confidence", None),
        ("routing=[confidence,features]", None),
        ("routing=guess", "routing=guess: "),
        ("tasks=digits", None),
        ("tasks=mnits", "tasks: there is no dataset 'mnits'"),
        ("tasks=3", "tasks=3: "),
        ("tasks=[{name: digits, fraction: 2}]", "task digits: fraction=2: a number above 0 and at most 1 is needed"),
        ("tasks=[{name: digits, label_map: a.json}]", "task digits: label_map=a.json: there is no"),
        ("task.augment=flop", "task low_digits: augment=flop: "),
        ("++task.fracton=1", "unknown setting task.fracton: did you mean 'fraction'"),
        ("task.val_fraction=1", "task.val_fraction=1: auto or a number of at least 0 and below 1 is needed"),
        ("choice_split=tran", "choice_split=tran: digits has "),
    ],
)
def test_tasks_and_routing(override, message):
    key = override.lstrip("+").partition("=")[0].partition(".")[0]
    found = [text for text in problems("method=paint", override) if key.rstrip("s") in text]
    assert (not found) if message is None else any(text.startswith(message) for text in found), found


@pytest.mark.parametrize(
    ("model", "words", "message"),
    [
        ("cnn", ["method=delta"], "Sequential has no block: "),
        ("vgg11_cifar", ["method=delta", "protocol=scratch"], "has no block: "),
        ("resnet8", ["method=delta", "method.modules=99"], "method.modules=99: CifarResNet has 3 blocks; or all"),
        (
            "resnet8",
            ["method=delta", "method.modules=[layer9]"],
            "CifarResNet has no block layer9; its blocks are",
        ),
        ("resnet8", ["method=delta", "method.budget=1"], "method.budget=1: one module already has "),
        ("resnet8", ["method=delta"], None),
        ("cnn", ["method=lora"], None),
        ("vgg11_cifar", ["method=finetune"], None),
    ],
)
def test_what_a_network_lacks_is_told_before_the_run(tmp_path, model, words, message):
    models.save(models.build(model, classes=10), tmp_path / "base.safetensors", {})
    words = [f"weights_root={tmp_path}", "model=any", "model.name=base", "dataset=digits", "loader=torch", *words]
    found = problems(*words)
    assert (found == []) if message is None else (len(found) == 1 and message in found[0]), found


def test_all_mistakes_are_told_at_once():
    words = ["protocol=both", "routing=guess", "method.modules=0", "method.skips=none", "batch_size=0"]
    assert any("'mnits'" in text for text in problems("tasks=mnits", *words))
    words += ["tasks=3", "+task.fracton=1"]
    found = problems("method=delta", "model=resnet20", *words)
    for word in (*words[:-1], "task.fracton", "no weights for model resnet20"):
        assert len([text for text in found if word in text]) == 1, word


def declared():
    """Every class of settings.py that declares what a method takes, and what is constructed from it."""
    found = [value for value in vars(settings).values() if isinstance(value, type)]
    found = [one for one in found if issubclass(one, settings.PatchMethodSettings)]
    return [(one, load_target("", one.constructs) if one.constructs else one) for one in found]


@pytest.mark.parametrize(("schema", "made"), declared())
def test_settings_are_those_of_the_constructor(schema, made):
    if schema is made:  # the settings are the object
        return
    parameters = {name: p for name, p in inspect.signature(made).parameters.items() if p.kind is p.KEYWORD_ONLY}
    assert parameters.keys() == schema.model_fields.keys() or made is HeadOnly
    for name, parameter in parameters.items():
        default = parameter.default
        assert schema.model_fields[name].default == (list(default) if isinstance(default, tuple) else default)


def test_every_method_of_the_config_is_declared():
    files = [yaml.safe_load(path.read_text()) for path in (CONFIG / "patch" / "method").glob("*.yaml")]
    targets = {node["_target_"] for node in files if "_target_" in node}
    assert all(issubclass(schema_of(target), settings.PatchMethodSettings) for target in targets)
    for path in (CONFIG / "patch" / "method").glob("*.yaml"):
        assert validate(composed(f"method={path.stem}"), settings.PatchSettings, rules=False) == []


def test_a_wrong_command_is_answered_without_torch():
    code = """
import sys
from recombine.cli.main import main
sys.argv = ["patch", "model=resnet20", "tasks=mnits", "method.modules=0", "routing=guess"]
try:
    main("patch")
finally:
    print("torch:", "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2 and "no dataset 'mnits'" in done.stderr, done.stderr
    assert done.stdout.rstrip().endswith("torch: False"), done.stderr


def test_defaults_of_the_settings_are_those_of_the_config():
    config = to_dict(OmegaConf.to_container(composed(), resolve=True))
    found = {name: field.default for name, field in settings.PatchSettings.model_fields.items()}
    for name in ("tasks", "protocol", "choice_split", "feature_cache_gib", "routing", "batch_size"):
        assert found[name] == config[name], name
