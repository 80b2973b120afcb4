"""Where clones come from: one source with its data, or several, each with its own classes to clone. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from recombine.core.errors import ConfigError
from recombine.data import registry
from recombine.data.checks import check_node
from recombine.models.checks import check_model

__all__ = ["CloneSource", "check_sources", "list_sources"]

SHARED = ("fraction", "fraction_seed", "test_fraction", "augment")
"""Settings of `source_data` that hold for every entry of `sources`."""
EXAMPLE = "'sources=[{name: cnn-digits_low-s1000, dataset: digits_low, clone: [0,1]}]'"


class CloneSource(NamedTuple):
    """A network to clone from: its node, the node of the data it was trained on, and the classes to clone."""

    model: Mapping[str, Any] | str
    data: dict[str, Any]
    clone: list[int | str]

    @property
    def name(self) -> str:
        """How rows and files call the network."""
        return self.model if isinstance(self.model, str) else str(self.model["name"])


def list_sources(config: Mapping[str, Any]) -> list[CloneSource]:
    """The entries of `sources`, or the one of `source`, `source_data` and `clone`; ConfigError names what is wrong."""
    if not config.get("sources"):
        given = config["clone"]
        clone = given if isinstance(given, list) else [given]  # a refused config is described too
        return [CloneSource(config["source"], config["source_data"], clone)]
    found, wrong = [], []
    for number, entry in enumerate(config["sources"], start=1):
        try:
            found.append(_read_entry(entry, {key: config["source_data"].get(key) for key in SHARED}))
        except ConfigError as error:
            wrong += [f"sources, entry {number}: {text}" for text in error.problems]
    if wrong:
        raise ConfigError(wrong)
    return found


def _read_entry(entry: Any, shared: dict[str, Any]) -> CloneSource:
    if not isinstance(entry, Mapping):
        raise ConfigError(f"{entry} is no source with its data and classes, such as {EXAMPLE}")
    if absent := [key for key in ("name", "dataset", "clone") if not entry.get(key)]:
        raise ConfigError(f"{', '.join(absent)} not given; such as {EXAMPLE}")
    if not isinstance(entry["clone"], list):
        raise ConfigError(f"clone={entry['clone']}: a list is needed, such as clone: [{entry['clone']}]")
    more = {key: value for key, value in entry.items() if key not in ("name", "dataset", "clone")}
    given = {key: value for key, value in shared.items() if value is not None}
    return CloneSource(str(entry["name"]), registry.node(str(entry["dataset"]), given | more), entry["clone"])


def check_sources(
    config: Mapping[str, Any], data_root: str | Path, weights_root: str | Path, *, networks: bool = True
) -> list[str]:
    """What is wrong with the sources and their data, and their networks if these are needed, without loading any."""
    several = bool(config.get("sources"))
    try:
        sources = list_sources(config)
    except ConfigError as error:
        return error.problems
    found = []
    for number, source in enumerate(sources, start=1):
        wrong = check_node(source.data, data_root, "dataset" if several else "source_data")
        if networks:
            wrong += check_model(source.model, weights_root, frozen=True, path="source")
        found += [f"sources, entry {number}: {text}" if several else text for text in wrong]
    return found
