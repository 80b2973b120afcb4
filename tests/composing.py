"""Configs of the entries as Hydra composes them; composing takes a fifth of a second, setting values on a copy none."""

from __future__ import annotations

from functools import cache

from hydra import compose
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig

from recombine.cli.entries import ENTRIES
from recombine.cli.search_path import initialize_entry
from recombine.core.files import CONFIG_DIR

PARSER = OverridesParser.create()


@cache
def _with_groups(entry: str, overrides: tuple[str, ...]) -> DictConfig:
    with initialize_entry(entry):
        return compose(ENTRIES[entry].config, list(overrides))


@cache
def _parsed(text: str) -> Override:
    return PARSER.parse_override(text)


def _chooses(entry: str, override: Override) -> bool:
    folders = (CONFIG_DIR, CONFIG_DIR / (ENTRIES[entry].groups or "."))
    exists = any((folder / override.key_or_group).is_dir() for folder in folders)
    return exists and not isinstance(override.value(), dict)


def composed(entry: str, *overrides: str) -> DictConfig:
    """What `compose` gives: choices of groups are composed once, other overrides set as Hydra does it afterwards."""
    parsed = [_parsed(text) for text in overrides]
    choices = tuple(text for text, override in zip(overrides, parsed, strict=True) if _chooses(entry, override))
    cfg = _with_groups(entry, choices).copy()
    ConfigLoaderImpl._apply_overrides_to_config([override for override in parsed if not _chooses(entry, override)], cfg)
    return cfg
