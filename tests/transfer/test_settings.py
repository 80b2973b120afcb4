"""Settings of transfer and flips: those of the constructors, and wrong ones are told in one sentence each."""

import inspect
import math
import re
from pathlib import Path
from pkgutil import resolve_name

import pytest
import yaml
from digits import compose_config, run_rows

from recombine.cli.entries import ENTRIES
from recombine.cli.overrides import compose_all
from recombine.core.builds import load_target
from recombine.core.settings import SCHEMAS, find_problems
from recombine.engine.settings import MethodSettings
from recombine.flips import settings as flips_settings
from recombine.run.config import validate
from recombine.run.launch import check
from recombine.run.settings import EntrySettings
from recombine.transfer import multi_teacher, recipe
from recombine.transfer.method_settings import METHOD
from recombine.transfer.settings import TransferSettings
from tests import composing

CONFIG = Path(__file__).parents[2] / "config"
TARGETS = [target for target in SCHEMAS if target.startswith(("recombine.transfer.", "recombine.flips."))]
METHODS = sorted((CONFIG / "transfer" / "method").rglob("*.yaml"))


def parameters(constructor):
    """Parameters of a class; where it ends with `**options`, those of its base too."""
    found = {}
    for each in constructor.__mro__:
        taken = inspect.signature(each).parameters.values()
        found = {p.name: p for p in taken if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)} | found
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken):
            return found


@pytest.mark.parametrize("target", TARGETS)
def test_declared_settings_are_those_of_the_constructor(target):
    constructor, schema = load_target("", target), SCHEMAS[target]
    taken = {name: p for name, p in parameters(constructor).items() if name not in METHOD.late}
    assert taken.keys() == schema.model_fields.keys()
    for name, field in schema.model_fields.items():
        assert field.is_required() == (taken[name].default is inspect.Parameter.empty), name
        assert field.is_required() or field.default == taken[name].default, name
        assert field.description, f"{name} has no help text"
    if issubclass(schema, METHOD.schema):
        assert schema.many_teachers == constructor.many_teachers


@pytest.mark.parametrize("file", METHODS, ids=lambda file: str(file.relative_to(CONFIG)))
def test_every_method_file_has_settings_of_its_method(file):
    cfg = yaml.safe_load(file.read_text())
    parts = {group.strip("/"): name for node in cfg.get("defaults", []) for group, name in node.items()}
    for group in parts.keys() & {"mask", "loss"}:
        cfg["method"][group] = yaml.safe_load((CONFIG / "transfer" / group / f"{parts[group]}.yaml").read_text())
    assert METHOD.problems(cfg["method"], "method") == []
    assert issubclass(SCHEMAS[cfg["method"]["_target_"]], MethodSettings)
    assert cfg.pop("optimizer", {}).keys() <= {"lr", "weight_decay"}
    problems = find_problems(TransferSettings, {key: value for key, value in cfg.items() if key != "defaults"})
    assert all("a value is needed" in problem for problem in problems), "the primary config gives the rest"


@pytest.mark.parametrize("entry", ["transfer", "multi_teacher", "flips", "pretrain"])
def test_the_entry_lists_every_setting_with_its_default(entry):
    schema = resolve_name(ENTRIES[entry].settings)
    cfg = yaml.safe_load((CONFIG / f"{ENTRIES[entry].config}.yaml").read_text())
    groups = {"student", "teacher", "model", "dataset", "loader", "engine", "schedule", "logger", "optimizer", "method"}
    shared = EntrySettings.model_fields.keys() - {"name"}
    assert schema.model_fields.keys() - groups - shared <= cfg.keys()
    entrys_choice = {"name", "batch_size", "models", "text_encoder", *groups}
    for name, field in schema.model_fields.items():
        if name in cfg and not field.is_required() and name not in entrys_choice:
            assert cfg[name] == field.default, name


@pytest.mark.parametrize("method", ["xekl_mcl", "dp_flip_st", "cd", "crd"])
def test_settings_a_method_does_not_have_are_told(folder, method):
    cfg = compose_config(folder, f"method={method}", "+method.momentun=1")
    (problem,) = validate(cfg, TransferSettings, rules=False)
    assert "unknown setting method.momentun" in problem
    assert validate(compose_config(folder, f"method={method}"), TransferSettings, rules=False) == []


@pytest.mark.parametrize(
    ("method", "setting", "message"),
    [
        ("kl", "kl_weight=1.5", "a number of at least 0 and at most 1 is needed, such as method.kl_weight=0.5"),
        ("kl", "kl_samples=none", "one of all, not_negative, positive"),
        ("kl", "batchnorm=frozen", "one of adapt, keep"),
        ("kl", "temperature=0", "a number above 0 is needed, such as method.temperature=1"),
        ("kl", "temperature=warm", "a number above 0"),
        ("kl_dp", "temperature=inf", "a number above 0"),
        ("kl", "topk=0", "a whole number of at least 1, or null is needed, such as method.topk=100"),
        ("kl_dp", "topk=-1", "a whole number of at least 1"),
        ("kl_dp", "topk=many", "a whole number of at least 1"),
        ("kl_dp", "topk=1.5", "a whole number of at least 1"),
        ("kl_dp", "initial_weight=-1", "a number of at least 0"),
        ("kl_dp", "supervised=maybe", "true or false"),
        ("dp_flip_st", "rule=coin", "one of teacher_on_positive"),
        ("dp_flip_st", "supervised=false", "true is needed"),
        ("xe", "label_smoothing=1.5", "a number of at least 0 and at most 1"),
        ("xe", "xe_on_probabilities=2", "true or false"),
        ("xekl_mcl", "decay=1.0", "a number of at least 0 and below 1"),
        ("xekl_mcl", "every=0", "a number above 0"),
        ("xekl_mcl", "reset_fast_on_eval=1", "true or false"),
        ("self_dist", "temperature=-1", "a number above 0"),
        ("bi_kd", "detach=perhaps", "true or false"),
        ("cd", "contrast_weight=-1", "a number of at least 0"),
        ("crd", "negatives=0", "a whole number of at least 1"),
        ("crd", "dimensions=2.5", "a whole number of at least 1"),
        ("crd", "nce_temperature=0", "a number above 0"),
        ("crd", "nce_momentum=2", "a number of at least 0 and at most 1"),
    ],
)
def test_wrong_settings_are_one_clear_message(method, setting, message):
    node = yaml.safe_load((CONFIG / "transfer" / "method" / f"{method}.yaml").read_text())["method"]
    name, value = setting.split("=")
    (problem,) = METHOD.problems({**node, name: math.inf if value == "inf" else yaml.safe_load(value)}, "method")
    assert problem.lower().startswith(f"method.{setting.replace('1.0', '1')}: {message}")


def test_all_mistakes_of_a_command_are_told_together(folder):
    wrong = ["lr_factor=-1", "method.topk=0", "teacher.name=nobody", "optimizer.lr=fast", "engine.epochs=soon"]
    problems = "\n".join(check(recipe, compose_config(folder, *wrong)))
    for text in ("lr_factor=-1: a number", "method.topk=0", "unknown model 'nobody'", "optimizer.lr", "engine.epochs"):
        assert text in problems
    wrong = ["combine=soup", "method=xe", "teachers=[wide,wide,nobody]", "order=up"]
    problems = "\n".join(check(multi_teacher, compose_config(folder, *wrong, config="multi_teacher/multi_teacher")))
    for text in ("method=xe learns", "wide is named twice", "unknown model 'nobody'", "order=up: one of"):
        assert text in problems


@pytest.mark.parametrize(
    ("entry", "words", "message"),
    [
        (
            "transfer",
            ["teacher=resnet56"],
            "teacher holds .*; give the network by model@teacher=resnet56$",
        ),
        ("transfer", ["student=a.safetensors"], "student holds .* by model@student=any student.name=a.safetensors"),
        ("transfer", ["method=distill", "method.loss=dkd"], "method.loss=dkd: .* choose by loss=dkd"),
        ("transfer", ["mask=dp_soft"], "mask=dp_soft: this entry has no mask; method=distill has one"),
        ("flips", ["model=resnet20"], "model=resnet20: this entry has no model; did you mean 'models'"),
        ("flips", ["text_encoder=clip"], r"text_encoder.architecture=\.\.\., or leave all out by text_encoder=null"),
    ],
)
def test_words_in_the_wrong_place_are_told_with_the_right_one(entry, words, message):
    problems = compose_all(str(CONFIG), ENTRIES[entry].config, words).problems
    assert len(problems) == 1 and re.search(message, problems[0])


CALIBRATED = "is calibrated on validation images; dataset.val_fraction=0.1 has some"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["mask=dp_calibrated", "dataset.val_fraction=0"], CALIBRATED),
        (["method.temperatures=calibrated", "dataset.val_fraction=0"], CALIBRATED),
        (["method.temperatures=[1.0]"], "method.temperatures has 1 values and 2 networks may teach"),
        (["dataset.classes=12"], "different numbers of classes: student 10, teacher 10, dataset.classes 12"),
    ],
)
def test_what_a_composed_method_lacks_is_told_before_it_starts(folder, words, message):
    assert message in "\n".join(check(recipe, compose_config(folder, "method=distill", *words)))


def test_temperatures_of_teachers_that_are_combined(folder):
    words = ["method=distill", "teachers=[wide,letters]", "method.temperatures=[1.0,2.0]"]
    for combine, told in (("sequential", 0), ("parallel", 1)):
        cfg = compose_config(folder, *words, f"combine={combine}", config="multi_teacher/multi_teacher")
        assert "\n".join(check(multi_teacher, cfg)).count("has 2 values and 3 networks may teach") == told


METHOD_FILE = """
from torch.nn.functional import mse_loss

from recombine.transfer.method import Transfer, make_step


class SquaredError(Transfer):
    reads_labels = False

    def __init__(self, net, teachers, *, name, scale, batchnorm="adapt"):
        super().__init__(net, name=name, teachers=teachers, batchnorm=batchnorm)
        self.scale = scale

    def forward(self, batch):
        (target,) = self.teachers(batch)
        return make_step(self.scale * mse_loss(self.net(batch.images), target), {})
"""


def test_a_method_of_ones_own(folder, tmp_path, monkeypatch):
    (tmp_path / "my_methods.py").write_text(METHOD_FILE)
    monkeypatch.syspath_prepend(tmp_path)
    mine = ["method=self_dist", "~method.temperature", "method.name=mine", "method._target_=my_methods.SquaredError"]
    (problem,) = check(recipe, compose_config(folder, *mine))
    assert "my_methods.SquaredError needs scale" in problem and "method.scale=..." in problem
    wrong = check(recipe, compose_config(folder, *mine, "+method.scale=1", "+method.scales=1"))
    assert wrong == ["unknown setting method.scales: my_methods.SquaredError does not take it; did you mean 'scale'?"]
    (row,) = run_rows(recipe, compose_config(folder, *mine, "+method.scale=0.1", "engine.max_steps=3"))
    assert (row.status, row.cell["method"]) == ("ok", "mine")
    several = ["teachers=[wide,letters]", "combine=parallel", *mine, "+method.scale=1"]
    (problem,) = check(multi_teacher, compose_config(folder, *several, config="multi_teacher/multi_teacher"))
    assert "method=mine takes one teacher at a time, not 2" in problem


def test_text_encoders_are_declared():
    assert find_problems(flips_settings.ClipSettings, {"weights": 3}, "text_encoder")[0].startswith(
        "text_encoder.weights=3: text"
    )


def test_a_ranking_has_no_teacher_in_its_name():
    ranking = composing.composed(
        "transfer", "dataset=cifar10", "model@student=resnet20", "candidates=[resnet32,resnet56]"
    )
    assert ranking.name == "cifar10-teachers-for-resnet20"
    cfg = composing.composed("transfer", "dataset=cifar10", "model@student=resnet20", "model@teacher=resnet56")
    assert cfg.name == "cifar10-resnet56-to-resnet20-kl_dp"
