"""Overrides that Hydra takes, or refuses in its own words, and what was meant by them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from hydra.core.config_loader import ConfigLoader
from omegaconf import DictConfig, OmegaConf

__all__ = ["choices_of", "choices_with", "first_lines", "name_of", "paths", "replaces_node", "without_hydra"]


def replaces_node(key: str, value: Any, cfg: DictConfig, choices: Mapping[str, str], options: Sequence[str]) -> str:
    """What is wrong with one word in the place of a node of settings, as `teacher=resnet56`; empty if nothing is.

    `choices` are the options of the config's groups, `options` those of the group that the node comes from.
    """
    node = OmegaConf.select(cfg, key, throw_on_missing=False)
    if not isinstance(value, str) or not OmegaConf.is_dict(node) or not node.keys() & {"name", "_target_"}:
        return ""
    group = key.rpartition(".")[2]
    if f"model@{key}" in choices:
        by = f"model@{key}={value}" if value in options else f"model@{key}=any {key}.name={value}"
        mend = f"give the network by {by}"
    elif group in choices and options:
        mend = f"choose by {group}={value if value in options else options[0]}"
    else:
        first = next(name for name in map(str, node) if name != "_target_")
        mend = f"change one of them, as {key}.{first}=..., or leave all out by {key}=null"
    return f"{key}={value}: {key} holds settings of its own; {mend}"


def choices_with(loader: ConfigLoader, groups: Iterable[str], slot: str) -> list[str]:
    """The choices, as `method=distill`, that bring a group of their own which this config has not."""
    found = []
    for group in groups:
        for option in loader.get_group_options(group):
            brought = {getattr(default, "group", "").lstrip("/") for default in _defaults(loader, group, option)}
            if slot in brought:
                found.append(f"{group}={option}")
    return found


def first_lines(error: BaseException) -> str:
    """What an error of Hydra's says, and what its cause does, in a line."""
    lines = [str(cause).strip().splitlines()[0] for cause in (error, error.__cause__) if cause and str(cause).strip()]
    return ": ".join(lines) or type(error).__name__


def _defaults(loader: Any, group: str, option: str) -> Sequence[Any]:
    """The defaults list of an option."""
    result = loader.repository.load_config(f"{group}/{option}")
    return (result.defaults_list or ()) if result is not None else ()


def choices_of(cfg: DictConfig) -> dict[str, str]:
    """The options of the groups of a config, those of Hydra's own left out."""
    choices = cfg.hydra.runtime.choices
    return {str(group): str(option) for group, option in choices.items() if not str(group).startswith("hydra/")}


def name_of(text: str) -> str:
    """What an override sets."""
    return text.partition("=")[0].lstrip("+~")


def without_hydra(cfg: DictConfig) -> DictConfig:
    """The config without its node `hydra`."""
    return OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])


def paths(cfg: Any, prefix: str = "") -> Iterator[str]:
    """Dotted names of all settings."""
    keys: Any = cfg if OmegaConf.is_dict(cfg) else ()
    for key in keys:
        yield f"{prefix}{key!s}"
        if not OmegaConf.is_missing(cfg, key) and not OmegaConf.is_interpolation(cfg, key):
            yield from paths(cfg[key], f"{prefix}{key!s}.")
