"""Settings of cloning: every config below config/pnc fits them, and they load no torch."""

from __future__ import annotations

import subprocess
import sys
from typing import get_args

import pytest
from hydra import compose

from recombine.cli.search_path import initialize_entry
from recombine.core.settings import Settings, find_problems, schema_of
from recombine.pnc import method_settings
from recombine.pnc.clone.adapters import ADAPTERS
from recombine.pnc.clone.branch import HEADS
from recombine.pnc.clone.masks import MASK_KINDS
from recombine.pnc.method_settings import CloningSettings, FromFileSettings, PncMethodSettings
from recombine.pnc.recipe import BASELINES
from recombine.pnc.settings import PncSettings
from recombine.run.config import plain
from tests import sweeps

FOLDER = sweeps.CONFIG / "pnc"
METHODS = sorted(path.stem for path in (FOLDER / "method").glob("*.yaml"))


def config_of(method):
    with initialize_entry("pnc"):
        return plain(compose("pnc/pnc", [f"method={method}"]))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_fits_its_settings(method):
    node = config_of(method)["method"]
    schema = schema_of(node["_target_"])
    assert issubclass(schema, PncMethodSettings) and node["name"] == method
    problems = find_problems(schema, node, "method")
    if schema is FromFileSettings:
        assert problems == ["method.files=[]: a list of names is needed, such as method.files=[clone.safetensors]"]
    else:
        assert problems == []


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
    assert set(get_args(choices["adapter"])) == set(ADAPTERS) and set(get_args(choices["mask_kind"])) == set(MASK_KINDS)
    assert set(get_args(get_args(choices["head"])[0])) == set(HEADS)
    methods = {getattr(method_settings, name) for name in method_settings.__all__ if name.endswith("Settings")}
    trained = {each for each in methods if issubclass(each, PncMethodSettings)}
    assert trained == {PncMethodSettings, CloningSettings, FromFileSettings, *BASELINES}


def test_settings_load_no_torch():
    code = "import sys, recombine.pnc.settings, recombine.pnc.method_settings; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-W", "error", "-c", code], check=False).returncode == 0
