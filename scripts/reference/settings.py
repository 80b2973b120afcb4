"""The page of all settings, from the classes that declare them."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Iterator
from functools import cache
from pkgutil import resolve_name
from typing import Any

import yaml
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from recombine.cli.entries import ENTRIES, Entry
from recombine.core.builds import Builds
from recombine.core.field_text import allowed_values, as_text
from recombine.core.files import CONFIG_DIR
from recombine.core.settings import SCHEMAS, Settings, schema_of
from recombine.data.settings import cores
from reference.text import GENERATED, escape, sentence

__all__ = ["settings_page"]

SHARED = ("EntrySettings", "TrainingSettings")
"""Classes whose settings are listed once, for all entries that have them."""
GROUPS = {
    "model": "the network",
    "dataset": "the images",
    "loader": "how they are loaded",
    "optimizer": "the optimizer",
    "schedule": "the learning rate over the training",
    "engine": "the training loop",
    "logger": "logging",
    "launcher": "how the jobs of a multirun run side by side",
    "sweeper": "what chooses the jobs of a multirun",
}
"""Groups that several entries have."""
INTRO = """
# Settings

What can stand in a config, and so on a command line. The page is generated from the classes that check every command.

- A setting is given as `name=value`. A dot goes into a node: `engine.epochs=5`, `dataset.fraction=0.1`.
- A group is chosen by its name: `method=kl_dp`, `optimizer=adamw`. `@` names the place of a group that an entry has
  more than once: `model@student=resnet20`.
- *Default* is the default of the class. Where an entry's own config sets another one, the entry's section says so.
- *required*: the group or config that you choose gives the value; few commands have to.
- In a shell, quote lists and nodes: `'tasks=[mnist,usps]'`.

A wrong name or value ends the command with exit code 2 before anything runs. The message tells what was given, what is
allowed and an override that works.
"""


def settings_page() -> str:
    """Every declared setting, grouped by entry and by group option."""
    classes = {entry.name: resolve_name(entry.settings) for entry in ENTRIES.values()}
    shared = {base.__name__: base for schema in classes.values() for base in schema.__mro__ if base.__name__ in SHARED}
    done: set[type[Settings]] = set()
    parts = [GENERATED + INTRO, "## Shared groups", "", *shared_groups()]
    for name, title in zip(SHARED, ("Every entry", "Every entry that trains"), strict=True):
        own = {key: field for key, field in shared[name].model_fields.items() if key in shared[name].__annotations__}
        parts += ["", f"## {title}", "", *fields_table(own), *nodes(own, done)]
    inherited = {key for base in shared.values() for key in base.model_fields}
    for entry in ENTRIES.values():
        own = {key: field for key, field in classes[entry.name].model_fields.items() if key not in inherited}
        parts += ["", f"## {entry.name}", "", *entry_section(entry, own), *nodes(own, done)]
    return "\n".join([*parts, *others(done)]).rstrip() + "\n"


def entry_section(entry: Entry, own: dict[str, FieldInfo]) -> list[str]:
    """Groups and settings of one entry."""
    config = yaml.safe_load((CONFIG_DIR / f"{entry.config}.yaml").read_text(encoding="utf-8"))
    title = f"{sentence(entry.about)} Config: `config/{entry.config}.yaml`."
    return [title, "", *groups_table(entry, config), "", *fields_table(own, config), *changed(config, own)]


def shared_groups() -> list[str]:
    """The groups that several entries have, with their options."""
    rows = [f"| `{group}` | {text} | {names(options_of(group))} |" for group, text in GROUPS.items()]
    return ["| Group | Chooses | Options |", "|---|---|---|", *rows]


def others(done: set[type[Settings]]) -> Iterator[str]:
    """Declared nodes that stand inside of lists, such as the operations of `dataset.augment`."""
    left: dict[type, dict[str, type[Settings]]] = {}
    for target, schema in declared().items():
        if schema not in done:
            left.setdefault(schema.__mro__[1], {})[target] = schema
    for base, schemas in left.items():
        kind, what = (
            (base.__name__.removesuffix("Settings"), f"{about(base)} ") if base is not Settings else ("Other", "")
        )
        yield from ["", f"## {kind} nodes", "", f"{what}Each with its `_target_`."]
        for target, schema in schemas.items():
            yield from option(target, schema, "")


def nodes(fields: dict[str, FieldInfo], done: set[type[Settings]], prefix: str = "") -> Iterator[str]:
    """Sections for the nodes in these fields that no earlier section has."""
    for name, field in fields.items():
        for schema in nested(field):
            if schema not in done:
                done.add(schema)
                yield from section(schema, f"{prefix}{name}")
                yield from nodes(schema.model_fields, done, f"{prefix}{name}.")
        for rule in rules(field):
            options = options_for(rule, done)
            if options:
                yield from ["", f"### {prefix}{name}: options", ""]
                yield f"The `{prefix}{name}` node constructs {rule.what}."
            for target, schema in options.items():
                done.add(schema)
                yield from option(target, schema, f"{prefix}{name}")
                yield from nodes(schema.model_fields, done, f"{prefix}{name}.")


def options_for(rule: Builds, done: set[type[Settings]]) -> dict[str, type[Settings]]:
    """What a node may construct, by target; without what a narrower rule of another entry is for."""
    if rule.schema is Settings:  # somebody's own classes alone
        return {}
    narrower = [base for base in bases() if base is not rule.schema and issubclass(base, rule.schema)]
    return {
        target: schema
        for target, schema in declared().items()
        if issubclass(schema, rule.schema) and schema not in done and not issubclass(schema, tuple(narrower))
    }


@cache
def declared() -> dict[str, type[Settings]]:
    """What nodes may construct, by target: what is declared for classes, and settings that configs name themselves."""
    for entry in ENTRIES.values():
        resolve_name(entry.settings)
    files = sorted(CONFIG_DIR.rglob("*.yaml"))
    named = {target for file in files for target in targets(yaml.safe_load(file.read_text(encoding="utf-8")))}
    found = {target: schema_of(target) for target in sorted(named - set(SCHEMAS)) if target.startswith("recombine.")}
    every = SCHEMAS | {target: schema for target, schema in found.items() if schema is not None}
    return dict(sorted(every.items()))  # and not as they were imported


@cache
def bases() -> set[type[Settings]]:
    """The base classes of all options of all entries."""
    fields = [field for entry in ENTRIES.values() for field in resolve_name(entry.settings).model_fields.values()]
    return {rule.schema for field in fields for rule in rules(field)}


def section(schema: type[Settings], path: str) -> list[str]:
    """A node that is always of the same class."""
    return ["", f"### {path}", "", escape(about(schema)), "", *fields_table(schema.model_fields, prefix=f"{path}.")]


def option(target: str, schema: type[Settings], path: str) -> list[str]:
    """One class that a node may construct, with the config options that choose it."""
    configs = ", ".join(f"`{path}={name}`" for name in configs_of(target, path.rpartition(".")[2]))
    title = target.rpartition(".")[2].removesuffix("Settings")
    chosen = f" Chosen by {configs}." if configs else f" Chosen by `{f'{path}.' * bool(path)}_target_={target}`."
    lines = ["", f"#### {title}", "", escape(about(schema)) + chosen, ""]
    return lines + (fields_table(schema.model_fields, prefix=f"{path}." if path else "") or ["No settings."])


def fields_table(fields: dict[str, FieldInfo], config: dict | None = None, prefix: str = "") -> list[str]:
    """Markdown rows: setting, type, default, help text."""
    rows = []
    for name, field in fields.items():
        words = "a node" if nested(field) or rules(field) else as_text(allowed_values(field))
        if f"{prefix}{name}" == "loader.workers":  # the one bound that depends on the machine
            words = words.replace(f"and at most {cores()}", "and at most the cores of the machine")
        rows.append(f"| `{prefix}{name}` | {escape(words)} | {default(name, field, config)} | {help_text(field)} |")
    return ["| Setting | Type | Default | Meaning |", "|---|---|---|---|", *rows] if rows else []


def default(name: str, field: FieldInfo, config: dict | None) -> str:
    """The default of the entry's config, else of the class."""
    groups = config_groups(config or {})
    if name in groups:
        return f"`{name}={groups[name]}`" if groups[name] else "none"
    if config and name in config and not isinstance(config[name], dict):
        return f"`{as_text(config[name])}`"
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is PydanticUndefined:
        return "required"
    return "see below" if isinstance(value, Settings) else f"`{as_text(value) or repr('')}`".replace("|", "\\|")


def groups_table(entry: Entry, config: dict) -> list[str]:
    """The groups of an entry, what it chooses, and the options that it alone has."""
    rows = []
    for slot, chosen in config_groups(config).items():
        group = slot_group(config, slot)
        known = "[shared groups](#shared-groups)" if group in GROUPS else names(options_of(group, entry))
        rows.append(f"| `{'' if group == slot else group + '@'}{slot}` | `{chosen or 'null'}` | {known} |")
    return ["| Group | Default | Options |", "|---|---|---|", *rows]


def changed(config: dict, own: dict[str, FieldInfo]) -> list[str]:
    """What an entry's config sets of the settings that are listed elsewhere."""

    def flat(node: dict, path: str) -> Iterator[str]:
        for key, value in node.items():
            name = f"{path}{key}"
            if isinstance(value, dict):
                yield from flat(value, f"{name}.")
            elif path or name not in own:
                yield f"`{name}={as_text(value)}`"

    given = {key: value for key, value in config.items() if key not in ("defaults", "hydra")}
    texts = [text for text in flat(given, "") if not text.startswith("`name=")]
    return ["", "Set by this entry's config: " + ", ".join(texts) + "."] if texts else []


def config_groups(config: dict) -> dict[str, str | None]:
    """Slot -> chosen option, of a primary config's defaults list."""
    found: dict[str, str | None] = {}
    for item in config.get("defaults", []):
        if isinstance(item, dict):
            (key, value), *_ = item.items()
            found[key.removeprefix("optional ").lstrip("/").rpartition("@")[2]] = value
    return found


def slot_group(config: dict, slot: str) -> str:
    """The group that fills a slot: of `/model@student`, model."""
    keys = [
        next(iter(item)).removeprefix("optional ").lstrip("/") for item in config["defaults"] if isinstance(item, dict)
    ]
    return next(key.partition("@")[0] for key in keys if key.rpartition("@")[2] == slot)


def options_of(group: str, entry: Entry | None = None) -> list[str]:
    """Names of the options of a group, as this entry sees them."""
    prefix = f"{entry.name}/" if entry and group == "experiment" else ""
    folders = [CONFIG_DIR / group / prefix, *([CONFIG_DIR / entry.groups / group] if entry and entry.groups else [])]
    files = [(folder, file) for folder in folders for file in folder.rglob("[!_]*.yaml")]
    return sorted(prefix + file.relative_to(folder).with_suffix("").as_posix() for folder, file in files)


def names(options: list[str]) -> str:
    """Options as they are typed."""
    return ", ".join(f"`{name}`" for name in options)


def configs_of(target: str, group: str) -> Iterator[str]:
    """The options of a group, whatever its entry, that construct this target."""
    for file in sorted(CONFIG_DIR.rglob("*.yaml")):
        place = file.relative_to(CONFIG_DIR).with_suffix("").parts
        if group in place[:-1] and target in targets(yaml.safe_load(file.read_text(encoding="utf-8"))):
            yield "/".join(place[place.index(group) + 1 :])


def targets(node: Any) -> Iterator[str]:
    """Every `_target_` in a config file."""
    if isinstance(node, dict):
        yield from ([node["_target_"]] if "_target_" in node else [])
        for value in node.values():
            yield from targets(value)


def nested(field: FieldInfo) -> list[type[Settings]]:
    """Settings classes that a field holds."""
    return [one for one in leaves(field.annotation) if inspect.isclass(one) and issubclass(one, Settings)]


def rules(field: FieldInfo) -> list[Builds]:
    """What a field's node must construct; also of the members of a union."""
    inner = [data for one in typing.get_args(field.annotation) for data in getattr(one, "__metadata__", ())]
    return [data for data in (*field.metadata, *inner) if isinstance(data, Builds)]


def leaves(annotation: Any) -> Iterator[Any]:
    """The annotation and everything inside of it."""
    yield annotation
    for member in typing.get_args(annotation):
        yield from leaves(member)


def help_text(field: FieldInfo) -> str:
    """The string below a field."""
    return escape(" ".join((field.description or "").split()))


def about(schema: type[Settings]) -> str:
    """The first paragraph of a class's docstring."""
    return " ".join(inspect.getdoc(schema).split("\n\n")[0].split())
