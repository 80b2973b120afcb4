"""How settings are declared and checked: one pydantic model for each node of a config.

    class PadCrop(Settings):
        padding: int = Field(4, ge=0)
        '''Pixels added on each side.'''          # becomes the help text

`find_problems` reports everything that is wrong with a node, each in one sentence with an override that mends it.
Types, ranges, help texts and the reference page of the documentation all come from these classes. No torch here: a
wrong command is reported before it is imported.
"""

from __future__ import annotations

import copy
import inspect
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any, ClassVar, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from recombine.core.errors import ConfigError, did_you_mean
from recombine.core.field_text import allowed_values, as_text, example

__all__ = [
    "SCHEMAS",
    "VOLATILE",
    "NodeRule",
    "Settings",
    "declares",
    "find_problems",
    "given_settings",
    "read",
    "schema_of",
    "to_dict",
]

VOLATILE = (
    *(
        "output_root",
        "cache_root",
        "data_root",
        "weights_root",
        "device",
        "name",
        "logger",
        "verify_inputs",
        "loader.workers",
    ),
    *("engine.resume", "engine.log_every", "engine.save_every_minutes", "engine.save_every_steps"),
)
"""Settings that may differ between two executions of the same run: where files lie, what the machine is, what is
logged and saved how often. Everything else is part of the run's identity (the data and weights themselves are
identified by digests in its provenance, so two users with other folders get the same run name). A folder of
images (dataset=folder) has no other name than its place, which then counts too."""

S = TypeVar("S", bound="Settings")
SCHEMAS: dict[str, type[Settings]] = {}
"""`_target_` -> what its node may hold, for targets whose settings are declared apart from them."""


class Settings(BaseModel):
    """A node of a config. Fields are its settings; a string below a field is its help text.

    `class KL(Settings, target="package.module.Class")` declares the arguments of that constructor.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True, allow_inf_nan=False
    )
    constructs: ClassVar[str] = ""
    """What a node with these settings constructs, where that is not this class."""

    def __init_subclass__(cls, target: str = "", **options: Any) -> None:
        super().__init_subclass__(**options)
        if target:
            cls.constructs = target
            SCHEMAS[target] = cls

    def check(self, path: str) -> Iterable[str]:
        """What is wrong between the fields of a node at `path`, one message each."""
        return ()

    @classmethod
    def of(cls, node: Settings | Mapping[str, Any], path: str = "") -> typing.Self:
        """From a config node; ConfigError with every problem."""
        return read(cls, node, path)


class NodeRule:
    """What must hold of a node in a field, as metadata of the field: `method: Annotated[Node, Builds(...)]`."""

    what: str = ""
    """In words: a transfer method."""
    example: str = ""
    """An override that gives one: method=kl_dp."""

    def problems(self, node: Mapping[str, Any], path: str) -> list[str]:
        """Everything wrong with the node at `path`."""
        return []


def read(schema: type[S], node: Settings | Mapping[str, Any], path: str = "") -> S:
    """The settings of a node; ConfigError with every problem of it. `path` is the node's place in the config."""
    if isinstance(node, schema):
        return node
    given = given_settings(node)
    if problems := find_problems(schema, given, path):
        raise ConfigError(problems)
    return schema.model_validate(given)


def find_problems(schema: type[Settings], node: Mapping[str, Any], path: str = "", *, rules: bool = True) -> list[str]:
    """Everything wrong with a node, one sentence each: unknown names, wrong values, `rules` between settings."""
    given = given_settings(node)
    problems: list[str] = []
    try:
        made: Settings | None = schema.model_validate(given)
    except ValidationError as error:
        wrong: dict[str, str] = {}
        for each in error.errors(include_url=False):
            place, message = _explain(schema, each, given, path)
            wrong.setdefault(place, message)
        problems += wrong.values()
        made = _mended(schema, given, error)
    problems += _node_problems(schema, given, path)
    told = tuple(text.partition("=")[0] + "=" for text in problems)  # a rule that sees the default there has no say
    return problems + [
        text for text in (_broken_rules(made, path) if made and rules else ()) if not text.startswith(told)
    ]


def _broken_rules(made: Settings, path: str) -> Iterator[str]:
    """What the rules of a node and of the nodes in it say."""
    for name in type(made).model_fields:
        inner = getattr(made, name)
        if isinstance(inner, Settings):
            yield from _broken_rules(inner, f"{path}.{name}" if path else name)
    yield from made.check(path)


def _node_problems(schema: type[Settings], given: dict[str, Any], path: str) -> list[str]:
    """What is wrong with the nodes that construct something."""
    problems = []
    for name, field in schema.model_fields.items():
        for rule in (*field.metadata, *_rules(field.annotation)):
            if isinstance(rule, NodeRule) and isinstance(given.get(name), Mapping):
                problems += rule.problems(given[name], f"{path}.{name}" if path else name)
        inner = _nested(field.annotation)
        if inner is not None and isinstance(given.get(name), Mapping):
            problems += _node_problems(inner, given[name], f"{path}.{name}" if path else name)
    return problems


def _rules(annotation: Any) -> Iterator[Any]:
    """What is noted beside the members of a union, as in `Annotated[Node, Builds(...)] | None`."""
    for member in get_args(annotation):
        yield from getattr(member, "__metadata__", ())


def given_settings(node: Settings | Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a node, without `_target_` and its kin."""
    items = vars(node) if isinstance(node, Settings) else node
    return {str(key): to_dict(items[key]) for key in items if not (str(key).startswith("_") and str(key).endswith("_"))}


def to_dict(node: Any) -> Any:
    """Config containers as dict and list, recursively."""
    if isinstance(node, Mapping):
        return {str(key): to_dict(value) for key, value in node.items()}
    if isinstance(node, Sequence) and not isinstance(node, str):
        return [to_dict(value) for value in node]
    return node


def _mended(schema: type[Settings], given: dict[str, Any], error: ValidationError) -> Settings | None:
    """The node with defaults in the place of what is wrong, so that rules between the others are told too."""
    left = copy.deepcopy(given)
    for each in error.errors(include_url=False):
        node: Any = left
        holder: dict[str, Any] = left
        place = ""
        for part in each["loc"]:
            if not isinstance(node, dict) or part not in node:
                break
            holder, place, node = node, str(part), node[part]
        holder.pop(place, None)
    try:
        return schema.model_validate(left)
    except ValidationError:
        return None


def _explain(schema: type[Settings], error: Any, given: Any, path: str) -> tuple[str, str]:
    """Where an error of pydantic's is, and the sentence that reports it."""
    names = [str(part) for part in error["loc"]]
    field, depth = _field(schema, names)
    # Behind the field, pydantic names members of a union and items of a list: the field is what a person sets.
    place = ".".join([*([path] if path else []), *names[: depth + 1]])
    if error["type"] == "extra_forbidden":
        parent, place = _model(schema, names[:-1]), ".".join([*([path] if path else []), *names])
        return place, f"unknown setting {place}: {did_you_mean(names[-1], parent.model_fields)}"
    if error["type"] == "missing":
        return place, f"{place}: a value is needed; give {place}=..."
    if error["type"] == "value_error":
        return place, f"{place}={as_text(error['input'])}: {error['msg'].removeprefix('Value error, ')}"
    if field is None:
        return place, f"{place}: {error['msg']}"
    for name in names[: depth + 1]:
        given = given[name]
    if error["type"] in ("model_type", "dict_type") and (mend := _as_node(field, place)):
        return place, f"{place}={as_text(given)}: {mend}"
    shown = repr(given) if isinstance(given, float) and error["type"] == "int_type" else as_text(given)
    return place, f"{place}={shown}: {allowed_values(field)} is needed, such as {place}={as_text(example(field))}"


def _as_node(field: FieldInfo, place: str) -> str:
    """What to write for a field that holds settings of its own; empty for others."""
    for rule in (*field.metadata, *_rules(field.annotation)):
        if isinstance(rule, NodeRule) and rule.example:
            return f"{rule.what} is needed, such as {rule.example}"
    inner = _nested(field.annotation)
    return (
        f"it holds settings of its own; set one of them, as {place}.{next(iter(inner.model_fields))}=..."
        if inner
        else ""
    )


def _field(schema: type[Settings], names: list[str]) -> tuple[FieldInfo | None, int]:
    """The deepest field that an error's place leads to, and how many names lead there."""
    found, depth = None, 0
    model: type[Settings] | None = schema
    for position, name in enumerate(names):
        if model is None or name not in model.model_fields:
            break
        found, depth = model.model_fields[name], position
        model = _nested(found.annotation)
    return found, depth


def declares(schema: type[Settings], path: str) -> bool:
    """Whether a dotted path leads to a setting."""
    names = path.split(".")
    found, depth = _field(schema, names)
    return found is not None and depth == len(names) - 1


def _model(schema: type[Settings], names: list[str]) -> type[Settings]:
    for name in names:
        inner = _nested(schema.model_fields[name].annotation) if name in schema.model_fields else None
        schema = inner or schema
    return schema


def _nested(annotation: Any) -> type[Settings] | None:
    """The Settings class that a field holds, alone or beside None."""
    members = [annotation, *get_args(annotation)]
    return next((one for one in members if inspect.isclass(one) and issubclass(one, Settings)), None)


def schema_of(target: str) -> type[Settings] | None:
    """The settings that a target takes, if they are declared: in SCHEMAS, or as the target itself."""
    if target in SCHEMAS:
        return SCHEMAS[target]
    module, _, name = target.rpartition(".")
    if module.startswith("recombine.") and module.endswith("settings"):
        found = getattr(import_module(module), name, None)
        return found if inspect.isclass(found) and issubclass(found, Settings) else None
    return None
