"""Each entry has its own methods: every other one is refused in one sentence."""

import os
import subprocess
import sys
from pkgutil import resolve_name

import pytest
from hydra import compose
from omegaconf import OmegaConf
from pydantic import BaseModel

from recombine.cli.entries import ENTRIES
from recombine.cli.overrides import compose_all
from recombine.cli.search_path import initialize_entry
from recombine.core.files import CONFIG_DIR
from tests.composing import composed

TRAINING = [entry for entry in ENTRIES.values() if entry.groups]
METHODS = {
    entry.name: sorted(
        path.relative_to(CONFIG_DIR / entry.groups / "method").with_suffix("").as_posix()
        for path in (CONFIG_DIR / entry.groups / "method").rglob("*.yaml")
    )
    for entry in TRAINING
}


@pytest.mark.parametrize("entry", TRAINING, ids=lambda entry: entry.name)
def test_every_method_of_every_other_entry_is_refused_in_one_sentence(entry):
    foreign = sorted({name for names in METHODS.values() for name in names} - set(METHODS[entry.name]))
    assert len(foreign) > 20 or entry.name == "transfer"
    composition = compose_all(
        str(CONFIG_DIR), entry.config, [f"method={','.join(foreign)}", "hydra.mode=MULTIRUN"], sweep=True
    )
    told = {problem.partition(":")[0]: problem for problem in composition.problems}
    assert told.keys() == {f"method={name}" for name in foreign}
    for name in foreign:
        owners = [other for other in METHODS if name in METHODS[other]]
        assert f"there is no method '{name}'" in told[f"method={name}"] or "is called" in told[f"method={name}"]
        assert all(other in told[f"method={name}"] for other in owners), told[f"method={name}"]


@pytest.mark.parametrize("name", ["pretrain", "multi_teacher"])
def test_every_method_of_an_entry_composes(name):
    """Those of the other entries are composed by the tests of their settings, and those of transfer run."""
    words = [f"method={','.join(METHODS[name])}"]
    composition = compose_all(str(CONFIG_DIR), ENTRIES[name].config, words, sweep=True)
    assert composition.problems == []


@pytest.mark.parametrize(
    "words",
    [
        ["pnc", "experiment=pnc/mnist", "method=ewc", "method.epochs=1", "+method.x=2", "lime={grid: 3}", "clone=[3]"],
        ["transfer", "model@student=any", "student.name=a", "method=kl_dp", "~method.temperature", "++method.z=1"],
    ],
)
def test_configs_of_tests_are_those_of_hydra(words):
    with initialize_entry(words[0]):
        plain = compose(ENTRIES[words[0]].config, words[1:])
    ours = composed(*words)
    assert OmegaConf.to_yaml(ours) == OmegaConf.to_yaml(plain) and ours._metadata.flags == plain._metadata.flags


@pytest.mark.parametrize(
    ("line", "there", "elsewhere"),
    [
        ("recombine tr", "transfer", "pnc"),
        ("recombine pnc method=pnc_", "method=pnc_random", "kl"),
        ("recombine transfer method=kl", "method=kl_dp", "pnc"),
        ("recombine transfer method=kl_dp engine.ema", "engine.ema_decay=", "method"),
    ],
)
def test_the_shell_completes_commands_and_the_methods_of_each(line, there, elsewhere):
    environment = {**os.environ, "COMP_LINE": line, "COMP_POINT": str(len(line))}
    command = [sys.executable, "-m", "recombine.cli.command", "-sc", "query=bash"]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert there in result.stdout.split() and elsewhere not in result.stdout


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
def test_what_an_entry_names_is_there(entry):
    assert callable(resolve_name(entry.recipe).run) and (CONFIG_DIR / f"{entry.config}.yaml").is_file()
    assert issubclass(resolve_name(entry.settings), BaseModel)
    assert not entry.files or callable(resolve_name(entry.files))
