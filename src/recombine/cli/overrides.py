"""What is wrong with a command's overrides: all of it at once, where Hydra would stop at the first."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from recombine.cli import renamed
from recombine.cli.entries import ENTRIES, Entry, find_entry, owners_of
from recombine.cli.launchers import is_search, why_absent
from recombine.cli.search_path import use_groups
from recombine.cli.slips import choices_of, choices_with, first_lines, name_of, paths, replaces_node, without_hydra
from recombine.core.errors import did_you_mean
from recombine.core.settings import declares
from recombine.run.config import accepts

__all__ = ["Composition", "compose_all"]

FAULTS = (HydraException, OmegaConfBaseException, ValueError, TypeError)
"""Of Hydra; the last two for a group set to null, or to what are no names."""


@dataclass
class Composition:
    """What became of a command line: the config of its good overrides, and what is wrong with the others."""

    cfg: DictConfig | None = None
    """Of a sweep, the first job's; None if nothing can be composed at all."""
    problems: list[str] = field(default_factory=list)
    others: dict[str, DictConfig] = field(default_factory=dict)
    """Of a sweep, the config of each further choice of a swept override."""
    folders: list[Path] = field(default_factory=list)
    """Where configs were searched, folders of the user included."""
    searches: bool = False
    """Whether it is a multirun that chooses values by what its jobs come to."""


def compose_all(config_dir: str, config_name: str, overrides: Sequence[str], *, sweep: bool = False) -> Composition:
    """Compose `config_name` of `config_dir` with as many `overrides` as work, and explain the rest.

    With `sweep`, or where the config itself starts a multirun, each choice of a swept override is tried.
    """
    entry = find_entry(config_name)
    if entry is not None:
        use_groups(entry.groups)
    with initialize_config_dir(config_dir, version_base="1.3"):
        composer = _Composer(config_name, sweep, entry)
        places = [text for text in overrides if text.startswith("hydra.searchpath")]
        try:
            base = composer.start(places)
        except FAULTS as error:
            return Composition(problems=[first_lines(error)])
        composer.add_all([text for text in overrides if text not in places])
        cfg = composer.compose(composer.accepted)
        composer.find_unknown_keys(base, cfg)
        others = {choice: without_hydra(other) for choice, other in composer.others.items()}
        searches = composer.sweep and is_search(cfg)
        return Composition(without_hydra(cfg), composer.problems, others, composer.folders, searches)


class _Composer:
    """Tries overrides one by one, groups before values; works inside `initialize_config_dir`."""

    def __init__(self, config_name: str, sweep: bool, entry: Entry | None) -> None:
        self.config_name, self.sweep = config_name, sweep
        self.entry = entry.name if entry else ""
        self.settings = entry.settings if entry else "recombine.run.settings:EntrySettings"
        self.loader: ConfigLoader = GlobalHydra.instance().config_loader()
        self.parser = OverridesParser.create(config_loader=self.loader)
        self.accepted: list[str] = []
        """What the reported config is composed of: of a sweep, the first good choice."""
        self.problems: list[str] = []
        # Composing takes a quarter of a second: it is done once for each choice of groups.
        self.composed: dict[tuple[str, ...], DictConfig] = {}
        self.listed: dict[str, list[str]] = {}
        self.others: dict[str, DictConfig] = {}
        self.folders: list[Path] = []
        self.absent: tuple[str, ...] = ()

    def start(self, places: Sequence[str]) -> DictConfig:
        """The config without overrides but those of the search path, from which groups are listed from now on."""
        self.accepted, self.places = list(places), places
        base = self.base = self.compose(self.accepted)
        path = ConfigSearchPathImpl()
        for source in base.hydra.runtime.config_sources:
            path.append(source.provider, f"{source.schema}://{source.path}")
            if source.schema == "file":
                self.folders.append(Path(source.path))
        self.loader = ConfigLoaderImpl(path)
        return base

    def compose(self, overrides: Sequence[str]) -> DictConfig:
        """The config of these overrides: groups are composed, other values set on a copy as Hydra sets them then."""
        read = {text: self.parser.parse_override(text) for text in overrides}
        groups = [text for text, override in read.items() if text in self.places or self.chooses(override)]
        if tuple(groups) not in self.composed:
            self.composed[tuple(groups)] = compose(self.config_name, groups, return_hydra_config=True)
        cfg = self.composed[tuple(groups)].copy()
        ConfigLoaderImpl._apply_overrides_to_config([read[text] for text in read if text not in groups], cfg)
        return cfg

    def add_all(self, texts: Sequence[str]) -> None:
        overrides = [override for text in texts for override in self.parse(text)]
        overrides.sort(key=lambda override: (override.key_or_group != "experiment", not self.is_group(override)))
        experiments = [override for override in overrides if override.key_or_group == "experiment"]
        for override in experiments:
            self.add(override)
        overrides = overrides[len(experiments) :]
        overrides += self.swept_by_file({override.get_key_element() for override in overrides})
        firsts = [choices[0] for override in overrides if (choices := self.choices(override))]
        try:
            self.compose([*self.accepted, *firsts])
        except FAULTS:
            firsts = []
        told = len(self.problems)
        for override in overrides:
            self.add(override, known_good=firsts if len(self.problems) == told else [])

    def parse(self, text: str) -> list[Override]:
        try:
            if text.startswith("="):
                raise HydraException("nothing is named")
            override = self.parser.parse_override(text)
            override.config_loader = self.loader  # which knows what glob(*) means
            return [override]
        except HydraException as error:
            detail = str(error).splitlines()[0].removeprefix(f"Error parsing override '{text}'").strip(" :")
            detail = detail or " ".join(str(error).splitlines()[1:2])
            key, equals, value = text.partition("=")
            quoted = shlex.quote(f'{key}="{value}"') if equals and "token recognition" in detail else ""
            mend = f"quote it twice: {quoted}" if quoted else "quote what the shell or Hydra reads"
            self.problems.append(f"{text}: not of the form key=value ({detail}); {mend}")
            return []

    def is_group(self, override: Override) -> bool:
        return bool(self.options(override.key_or_group))

    def chooses(self, override: Override) -> bool:
        return self.is_group(override) and not isinstance(override.value(), dict)

    def options(self, group: str) -> list[str]:
        """Names of all options of a group, those of its sub-folders with their folder."""
        if group not in self.listed:
            folders = self.loader.list_groups(group)
            below = (f"{folder}/{option}" for folder in folders for option in self.options(f"{group}/{folder}"))
            names = (*self.loader.get_group_options(group), *below)
            self.listed[group] = [name for name in names if not name.startswith("_")]
        return self.listed[group]

    def swept_by_file(self, given: set[str]) -> list[Override]:
        """The sweep of an experiment file, without what the command line sets."""
        hydra = self.compose(self.accepted).hydra
        self.sweep = self.sweep or hydra.mode == RunMode.MULTIRUN
        params = (hydra.sweeper.get("params") or {}) if self.sweep else {}
        return [o for key, value in params.items() if key not in given for o in self.parse(f"{key}={value}")]

    def choices(self, override: Override) -> list[str]:
        """The single overrides that a swept one stands for; none for an interval, which has no end of them."""
        if not override.is_sweep_override():
            return [str(override.input_line)]
        if not self.sweep or not override.is_discrete_sweep():
            return []
        return [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]

    def add(self, override: Override, known_good: Sequence[str] = ()) -> None:
        if override.is_sweep_override() and not self.sweep:
            name, value = override.get_key_element(), override.get_value_string()
            self.problems.append(
                f"{override.input_line}: several values; add -m to run one job for each, "
                f"or write '{name}=[{value}]' for a list"
            )
            return
        name = override.get_key_element().lstrip("+~")
        if name.startswith(self.absent):
            return  # a setting of what is not installed
        if override.is_delete() and self.is_group(override) and name in choices_of(self.base):
            self.problems.append(f"{override.input_line}: this entry needs it; choose another one by {name}=...")
            return
        if override.is_delete() and self.declared(name):
            self.problems.append(f"{override.input_line}: this entry needs it; change it by {name}=...")
            return
        if override.is_discrete_sweep() and self.sweep and not self.choices(override):
            self.problems.append(f"{override.input_line}: no values at all, so that there is no job")
            return
        good = []
        for choice in self.choices(override):
            others = [text for text in known_good if name_of(text) != name_of(choice) and text not in self.accepted]
            problem = self.unknown_option(choice, override)
            try:
                if not problem and choice not in known_good:
                    self.others[choice] = self.compose([*self.accepted, *others, choice])
            except FAULTS as error:
                problem = self.explain(choice, override, error)
            if problem:
                self.problems.append(problem)
            else:
                good.append(choice)
        self.accepted += good[:1]
        self.others.pop(good[0] if good else "", None)

    def unknown_option(self, text: str, override: Override) -> str | None:
        """Checked for every group, as Hydra ignores a missing option of an optional one."""
        group, value = override.key_or_group, text.partition("=")[2]
        if not self.is_group(override):
            cfg, slot = self.compose(self.accepted), override.get_key_element()
            group = "model" if f"model@{slot}" in choices_of(cfg) else slot.rpartition(".")[2]
            given = self.parser.parse_override(text).value()
            return replaces_node(slot, given, cfg, choices_of(cfg), self.options(group))
        if override.is_delete() or value == "null" or not self.chooses(override):
            return None
        if group == "experiment" and (owner := value.partition("/")[0]) in ENTRIES and owner != self.entry:
            return f"{text}: this is an experiment of {owner}; give it to recombine {owner}"
        if lacking := why_absent(group, value):
            self.absent += (f"hydra.{group}.",)
            return f"{text}: {lacking}"
        if value in self.options(group):
            return None
        if value.startswith("["):
            named = override.is_sweep_override() or all(isinstance(item, str) for item in override.value())  # type: ignore[union-attr]
            return None if named else f"{text}: names of {group} are needed, such as {group}={self.options(group)[0]}"
        now = renamed.OPTIONS.get((group, value))
        if now in self.options(group):
            return f"{text}: {group} '{value}' is called '{now}' since version 0.2; give {name_of(text)}={now}"
        near = did_you_mean(value, self.options(group))
        return f"{text}: there is no {group} '{value}'{owners_of(group, value)}; {near}"

    def explain(self, text: str, override: Override, error: Exception) -> str:
        group, slot, cfg = override.key_or_group, override.get_key_element(), self.compose(self.accepted)
        if self.is_group(override) and slot not in choices_of(cfg):
            others = " or ".join(choices_with(self.loader, choices_of(cfg), slot)[:3])
            settings = [str(key) for key in without_hydra(cfg)]
            known = f"{others} has one" if others else did_you_mean(slot, {*choices_of(cfg), *settings})
            return f"{text}: this entry has no {slot}; {known}"
        if override.package is not None:
            return f"{text}: there is no group '{group}'; {did_you_mean(group, self.loader.list_groups(''))}"
        if isinstance(error.__cause__, ConfigKeyError | AttributeError):
            given, node = override.value(), OmegaConf.select(cfg, slot)
            if isinstance(given, dict) and OmegaConf.is_dict(node):
                text = next(f"{slot}.{key}={value}" for key, value in given.items() if key not in node)
            ours = not name_of(text).startswith("hydra.")
            return self.unknown_key(text, without_hydra(cfg) if ours else cfg, choices_of(cfg))
        return f"{text}: {first_lines(error)}"

    def declared(self, path: str) -> bool:
        """Whether the entry declares a setting of this name."""
        return declares(resolve_name(self.settings), path)

    def unknown_key(self, text: str, cfg: DictConfig, chosen: dict[str, str]) -> str:
        key = name_of(text)
        if text in renamed.OVERRIDES:
            return f"unknown setting {text}: give {renamed.OVERRIDES[text]} since version 0.2"
        for old, now in renamed.KEYS.items():
            if f"{key}.".startswith(f"{old}.") and now in paths(cfg):
                return f"unknown setting {key}: it is called {now}{key.removeprefix(old)} since version 0.2"
        *parents, last = key.split(".")
        node: Any = cfg
        path = ""
        for position, part in enumerate(parents):
            inner = OmegaConf.select(node, part) if OmegaConf.is_dict(node) else None
            if inner is None:
                last = part
                break
            node, path = inner, ".".join(parents[: position + 1])
        if not OmegaConf.is_dict(node):
            return f"{text}: {path} is a single value and has no settings"
        elsewhere = [name for name in paths(cfg) if name.split(".")[-1] == last]
        if elsewhere and not path:
            return f"unknown setting {key}: did you mean {' or '.join(elsewhere[:3])}?"
        known = [str(name) for name in node if not str(name).startswith("_")]
        if not path:
            groups = [group for group in self.loader.list_groups("") if group != "hydra"]
            return f"unknown setting {key}: {did_you_mean(last, {*known, *groups})}"
        if accepts(node, last) or self.declared(f"{path}.{last}"):
            return f"{text}: {path} has no default for {last}; +{text} adds it"
        choice = f" (of {path}={chosen[path]})" if path in chosen else ""
        return f"unknown setting {key}{choice}: {did_you_mean(last, known)}"

    def find_unknown_keys(self, base: DictConfig, cfg: DictConfig) -> None:
        """Top-level keys that no config of this entry defines: a `+key=`, or a slip in an experiment file."""
        packages = {key.split("@")[-1] for key in choices_of(cfg)} - {"experiment", "launcher", "sweeper"}
        known = ({str(key) for key in base} | packages) - {"hydra"}
        for key in without_hydra(cfg):
            if str(key) not in known:
                self.problems.append(f"unknown setting {key!s}: {did_you_mean(str(key), known)}")
