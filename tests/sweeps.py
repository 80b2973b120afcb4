"""Experiment files as their tests read them: what they sweep, and the file they build on."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

CONFIG = Path(__file__).parents[1] / "config"


def experiments(entry: str) -> list[str]:
    """Names of the experiments of an entry."""
    return sorted(path.stem for path in (CONFIG / "experiment" / entry).glob("*.yaml"))


@cache
def written(entry: str, experiment: str) -> DictConfig:
    """The file of an experiment, laid over that of the one it builds on."""
    node = yaml.safe_load((CONFIG / "experiment" / entry / f"{experiment}.yaml").read_text())
    bases = [written(entry, str(name).rpartition("/")[2]) for name in node["defaults"] if f"{entry}/" in str(name)]
    return OmegaConf.merge(*bases, node)


@cache
def choices(entry: str, experiment: str) -> dict[str, list[str]]:
    """The values of each swept key."""
    params = written(entry, experiment).hydra.sweeper.params.items()
    parsed = [OverridesParser.create().parse_override(f"{key}={value}") for key, value in params]
    return {
        o.get_key_element(): [*o.sweep_string_iterator()] if o.is_sweep_override() else [o.get_value_element_as_str()]
        for o in parsed
    }
