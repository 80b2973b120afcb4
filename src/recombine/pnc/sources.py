"""Where clones come from: one source with its data, or several, each with its own classes to clone (section 11.2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from recombine import models as zoo
from recombine.core.errors import ConfigError
from recombine.data import registry as named
from recombine.data.checks import check_node
from recombine.models.registry import training_hint
from recombine.run.config import plain

if TYPE_CHECKING:
    from omegaconf import DictConfig

__all__ = ["CloneSource", "listed", "problems"]

SHARED = ("fraction", "fraction_seed", "test_fraction", "augment")
"""Settings of `source_data` that hold for every entry of `sources`."""
EXAMPLE = "'sources=[{name: cnn-digits_low-s0, dataset: digits_low, clone: [0,1]}]'"


class CloneSource(NamedTuple):
    """A network to clone from: its node, the node of the data it was trained on, and the classes to clone."""

    model: Any
    data: dict[str, Any]
    clone: list

    @property
    def name(self) -> str:
        """How rows and files call the network."""
        return self.model if isinstance(self.model, str) else str(self.model["name"])


def listed(cfg: DictConfig) -> list[CloneSource]:
    """The entries of `sources`, or the one of `source`, `source_data` and `clone`; ConfigError names what is wrong."""
    settings = plain(cfg)
    if not settings["sources"]:
        return [CloneSource(settings["source"], settings["source_data"], settings["clone"])]
    found, wrong = [], []
    for number, entry in enumerate(settings["sources"], start=1):
        try:
            found.append(_source(entry, {key: settings["source_data"].get(key) for key in SHARED}))
        except ConfigError as error:
            wrong += [f"sources, entry {number}: {text}" for text in error.problems]
    if wrong:
        raise ConfigError(wrong)
    return found


def _source(entry: Any, shared: dict[str, Any]) -> CloneSource:
    if not isinstance(entry, Mapping):
        raise ConfigError(f"{entry} is no source with its data and classes, such as {EXAMPLE}")
    if absent := [key for key in ("name", "dataset", "clone") if not entry.get(key)]:
        raise ConfigError(f"{', '.join(absent)} not given; such as {EXAMPLE}")
    if not isinstance(entry["clone"], list):
        raise ConfigError(f"clone={entry['clone']}: a list is needed, such as clone: [{entry['clone']}]")
    more = {key: value for key, value in entry.items() if key not in ("name", "dataset", "clone")}
    given = {key: value for key, value in shared.items() if value is not None}
    return CloneSource(str(entry["name"]), {**named.node(str(entry["dataset"])), **given, **more}, entry["clone"])


def problems(cfg: DictConfig, *, networks: bool = True) -> list[str]:
    """What is wrong with the sources and their data, and their networks if these are needed, without loading any."""
    try:
        sources = listed(cfg)
    except ConfigError as error:
        return error.problems
    found = []
    for number, source in enumerate(sources, start=1):
        where, data = (f"sources, entry {number}: ", "") if cfg.sources else ("", "source_data: ")
        wrong = [data + text for text in check_node(source.data, cfg.data_root, "dataset")]
        if networks:
            hint = training_hint(source.name, cfg.weights_root)
            wrong += [t + hint for t in zoo.check(source.model, weights_root=cfg.weights_root, frozen=True)]
        found += [where + text for text in wrong]
    if cfg.on_collision not in ("error", "first"):
        found.append(f"on_collision={cfg.on_collision}: error, or first (a class is cloned from the first that has it)")
    if type(cfg.calibrate_epochs) not in (int, float) or cfg.calibrate_epochs < 0:
        found.append(f"calibrate_epochs={cfg.calibrate_epochs}: a number of at least 0 is needed")
    return found
