"""Settings of stitching: defaults of the constructors, the shipped files, and every mistake of a command at once."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from recombine.core.builds import load_target
from recombine.core.settings import SCHEMAS, find_problems
from recombine.run.config import validate
from recombine.stitch.settings import MatchingSettings, RetrainSettings, StitchSettings
from tests.composing import composed

CONFIG = Path(__file__).parents[2] / "config" / "stitch"
TARGETS = {target: schema for target, schema in SCHEMAS.items() if target.startswith("recombine.stitch.")}
OWN_DEFAULTS = {(StitchSettings, "name"), (StitchSettings, "batch_size")}
"""Settings of every entry that stitching gives another default."""
LATE = {"space", "budget", "seed"}


@pytest.mark.parametrize("target", TARGETS)
def test_settings_are_the_arguments_of_the_constructor(target):
    parameters = inspect.signature(load_target("", target)).parameters
    defaults = {name: parameter.default for name, parameter in parameters.items() if name not in LATE}
    assert {name: field.default for name, field in TARGETS[target].model_fields.items()} == defaults


@pytest.mark.parametrize("path", sorted(CONFIG.glob("*/*.yaml")), ids=lambda path: f"{path.parent.name}={path.stem}")
def test_shipped_options_are_valid(path):
    assert path.read_text().startswith("# ")
    cfg = composed("stitch", f"{path.parent.name}={path.stem}")
    assert cfg[path.parent.name].name == path.stem
    assert validate(cfg, StitchSettings, rules=False) == []


def test_defaults_of_the_file_are_those_of_the_settings():
    given = OmegaConf.to_container(OmegaConf.load(CONFIG / "stitch.yaml"))
    assert MatchingSettings.of(given["matching"]) == MatchingSettings()
    for schema, node in ((StitchSettings, given), (RetrainSettings, given["retrain"])):
        for name, value in node.items():
            if name in schema.model_fields and not isinstance(value, dict) and (schema, name) not in OWN_DEFAULTS:
                assert schema.model_fields[name].default == value, name


METHOD = "recombine.stitch.settings.StitchMethodSettings"
TARGET = "recombine.stitch.search.nsga2.Nsga2"
WRONG = {
    "budget=0": "a whole number of at least 1",
    "budget_unit=evaluations": "one of requests, unique",
    "search_fraction=1": "above 0 and below 1",
    "performance=speed": "one of accuracy, miou, loss",
    "eval_batch_networks=0": "at least 1",
    "num_saved=-1": "at least 0",
    "expected_stitches=0": "above 0",
    "search.population=1": "at least 4",
    "search.steering=1.5": "at most 1",
    "method.init=good": "one of default, lstsq, matched",
    "method.loss=good": "one of none, features, joint_features, distill, labels",
    "method.sampled_stitches=0": "at least 1",
    "bn_images=-1": "at least 0",
    "ensemble=votes": "one of logits, probs",
    "method.init_images=1.5": "a whole number",
    "matching.granularity=net": "one of op, block",
    "matching.depth_tiebreak=1": "below 1",
    "matching.restarts=-1": "at least 0",
    "matching.time_limit=long": "a number",
    "matching.max_matches=0": "at least 1, or null",
    "retrain.what=some": "one of none, stitches, all",
    "retrain.optimizer.lr=-1": "at least 0",
}


def test_all_mistakes_are_reported_together_with_a_valid_override():
    problems = validate(composed("stitch", *WRONG), StitchSettings, rules=False)
    assert len(problems) == len(WRONG)
    for given, allowed in WRONG.items():
        (text,) = [text for text in problems if text.startswith(f"{given}: ")]
        assert allowed in text and f"such as {given.partition('=')[0]}=" in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": {"_target_": "torch.nn.Linear"}}, "is not a method of stitching; method=stitch_matched is one"),
        ({"search": {"_target_": "torch.nn.Linear"}}, "is not a search; search=ga_familial is one"),
        ({"search": {"_target_": TARGET, "steering": 0.5}}, "unknown setting search.steering"),
        ({"matching": {"depth": 1}}, "unknown setting matching.depth"),
        ({"method": {"_target_": METHOD, "learn_share": True}}, "method.learn_share=true has nothing to learn from"),
    ],
)
def test_what_does_not_belong_there_is_refused(change, message):
    cfg = OmegaConf.to_container(composed("stitch"), resolve=True)
    (problem,) = find_problems(StitchSettings, {**cfg, **change}, rules=False)
    assert message in problem


def test_settings_import_no_torch():
    code = "import sys, recombine.stitch.settings; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
