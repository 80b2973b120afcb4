"""Settings of cloning: every config below config/pnc fits them, and they load no torch."""

from __future__ import annotations

import subprocess
import sys
from typing import get_args

import pytest

from recombine.core.settings import Settings, find_problems, schema_of, to_dict
from recombine.pnc import baseline_settings, method_settings
from recombine.pnc.baseline_settings import TrainedSettings
from recombine.pnc.clone.branch import GRANULARITIES, HEADS
from recombine.pnc.clone.masks import MASK_KINDS
from recombine.pnc.method_settings import (
    CloningSettings,
    ComposeSettings,
    FromFileSettings,
    PncMethodSettings,
)
from recombine.pnc.recipe import BASELINES
from recombine.pnc.settings import LimeSettings, PncSettings
from tests import sweeps
from tests.composing import composed
from tests.core.test_torch_free import ROOT, RUN

FOLDER = sweeps.CONFIG / "pnc"
METHODS = sorted(path.stem for path in (FOLDER / "method").glob("*.yaml"))


def config_of(method):
    return to_dict(composed("pnc", f"method={method}"))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_fits_its_settings(method):
    node = config_of(method)["method"]
    schema = schema_of(node["_target_"])
    assert issubclass(schema, PncMethodSettings) and node["name"] == method
    problems = find_problems(schema, node, "method")
    if schema is FromFileSettings:
        assert problems == ["method.files=[]: a list of names is needed, such as method.files=[clone.safetensors]"]
    else:
        assert [text for text in problems if not text.startswith("method.zoo=weights: there is no checkpoint")] == []


def test_defaults_are_those_of_the_configs():
    config = config_of("pnc")
    for schema, node in ((PncSettings, config), (CloningSettings, config["method"])):
        for name, field in schema.model_fields.items():
            if name in schema.__annotations__ and name in node:
                default = field.get_default(call_default_factory=True)
                default = default.model_dump() if isinstance(default, Settings) else default
                assert field.is_required() or default == node[name], name


def test_every_choice_is_built_by_something():
    choices = {name: field.annotation for name, field in CloningSettings.model_fields.items()}
    assert set(get_args(choices["mask_kind"])) == set(MASK_KINDS)
    assert set(get_args(get_args(choices["head"])[0])) == set(HEADS)
    assert set(get_args(choices["granularity"])) == set(GRANULARITIES)
    modules = (method_settings, baseline_settings)
    methods = {getattr(module, name) for module in modules for name in module.__all__ if name.endswith("Settings")}
    trained = {each for each in methods if issubclass(each, PncMethodSettings)}
    assert trained == {
        PncMethodSettings,
        TrainedSettings,
        CloningSettings,
        ComposeSettings,
        FromFileSettings,
        *BASELINES,
    }


def test_masks_that_cannot_be_together():
    weights = CloningSettings(granularity="weight", residual="stage", mask_input=True).check("method")
    assert [text.partition(":")[0] for text in weights] == ["method.residual=stage", "method.mask_input=true"]
    entries = CloningSettings(mask_input=True, adapter="none", per_position=False).check("method")
    assert "takes outputs of the adapter away; give method.adapter=conv1x1_bn" in entries[0]
    assert "differs from position to position; give method.per_position=true" in entries[1]
    assert not CloningSettings(mask_input=True, residual="stage").check("method")
    (many,) = LimeSettings(segment="quickshift", grid=17, num_fit=700).check("lime")
    assert many.startswith("lime.grid=17: lime.segment=quickshift takes 16 at most") and not LimeSettings().check(
        "lime"
    )


def test_settings_load_no_torch():
    code = "import sys, recombine.pnc.settings, recombine.pnc.baseline_settings; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-W", "error", "-c", code], check=False).returncode == 0


def test_a_wrong_command_is_answered_at_once_and_without_torch(tmp_path, weights):
    """Every mistake is reported together: of the method, its search, the neighbourhood, the data and the sources."""
    wrong = {
        "method.mask=best": "method.mask=best: one of learned, ones, random, magnitude, taylor, relevance is needed",
        "method.positions=[]": "method.positions=[]: a list of whole numbers of at least 0 or last, or null is needed",
        "method.search.train=0": "method.search.train=0: a whole number of at least 1",
        "+method.keep_rato=0.5": "unknown setting method.keep_rato: did you mean 'keep_ratio'",
        "lime.num_fit=10": "lime.num_fit=10: at least 34 are needed",
        "similarity.images=0": "similarity.images=0: a whole number of at least 1 is needed",
        "select_fraction=2": "select_fraction=2: a number above 0 and below 1 is needed",
        "on_collision=last": "on_collision=last: one of error, first is needed",
        "sources=[7]": "sources, entry 1: 7 is no source with its data and classes",
        "scratch.augment=mirror": "scratch.augment=mirror: known are",
    }
    networks = [f"weights_root={weights}", "model@target=any", "target.name=high"]
    command = [sys.executable, "-c", RUN, str(ROOT / "main_pnc.py"), *networks, *wrong]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    told = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == 2 and "torch: False" in told
    for words in wrong.values():
        assert words in told
