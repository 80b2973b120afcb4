"""The data sets under config/dataset, for entries that name several of them in one list."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from types import MappingProxyType
from typing import Any

import yaml

from recombine.core.errors import ConfigError, did_you_mean
from recombine.core.files import config_files
from recombine.core.labels import OWN_FOLDERS

__all__ = ["names", "node"]


def names() -> list[str]:
    """Every name that `dataset=` takes."""
    return list(config_files("dataset"))


def node(name: str, given: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
    """The dataset node of config/dataset/<name>.yaml with what is `given` laid over it; ConfigError.

    The defaults that `DatasetSettings` has are left out. A folder without a name is called as it is on disk.
    """
    if name not in names():
        raise ConfigError(f"there is no dataset '{name}'; {did_you_mean(name, names())}")
    dataset = yaml.safe_load(config_files("dataset")[name].read_text(encoding="utf-8"))
    dataset.pop("defaults", None)
    if name in OWN_FOLDERS:
        dataset["name"] = PurePath(str(given.get("folder", name))).name or name
    return {"source": dataset["name"], "folder": dataset["name"], **dataset, **given}
