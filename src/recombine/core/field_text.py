"""Fields of settings in words: what may stand in them, and a value that does."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, get_args, get_origin

import annotated_types as at
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

__all__ = ["allowed_values", "as_text", "example"]


def allowed_values(field: FieldInfo) -> str:
    """What may stand in a field, in words: `a number above 0 and at most 1, or null`."""
    return _words(field.annotation, field.metadata)


def _words(annotation: Any, metadata: Iterable[Any] = ()) -> str:
    origin, members = get_origin(annotation), get_args(annotation)
    if origin is typing.Annotated:
        return _words(members[0], [*members[1:], *metadata])
    if origin in (typing.Union, types.UnionType):
        parts = [_words(member, metadata) for member in members if member is not type(None)]
        return " or ".join(dict.fromkeys(parts)) + (", or null" if type(None) in members else "")
    if origin is Literal:
        return members[0] if len(members) == 1 else f"one of {', '.join(map(str, members))}"
    if annotation is bool:
        return "true or false"
    if annotation in (int, float):
        return ("a whole number" if annotation is int else "a number") + _bounds(metadata)
    if origin in (list, tuple) or annotation in (list, tuple):
        length = [rule.min_length for rule in _flat(metadata) if isinstance(rule, at.MinLen)]
        count = f"{length[0]} " if length and any(isinstance(rule, at.MaxLen) for rule in _flat(metadata)) else ""
        return f"a list of {count}{_many(members[0])}" if members else "a list"
    if annotation is str:
        return "text"
    return "settings" if origin is dict or annotation is dict or _is_model(annotation) else "a value"


def _many(annotation: Any) -> str:
    words = _words(annotation)
    for one, many in (("a whole number", "whole numbers"), ("a number", "numbers"), ("text", "names")):
        if words.startswith(one):
            return many + words.removeprefix(one)
    return words


def _bounds(metadata: Iterable[Any]) -> str:
    words = {at.Ge: ("at least", "ge"), at.Gt: ("above", "gt"), at.Le: ("at most", "le"), at.Lt: ("below", "lt")}
    found = []
    for rule in _flat(metadata):
        if type(rule) in words:
            word, key = words[type(rule)]
            found.append(f"{word} {as_text(getattr(rule, key))}")
    if not found:
        return ""
    return (" of " if found[0].startswith("at") else " ") + " and ".join(found)


def _flat(metadata: Iterable[Any]) -> Iterator[Any]:
    for rule in metadata:
        yield from _flat(rule.metadata) if isinstance(rule, FieldInfo) else (rule,)


def example(field: FieldInfo) -> Any:
    """A value that may stand in a field: its first example, else its default, else something of its kind."""
    if field.examples:
        return field.examples[0]
    default = field.get_default(call_default_factory=True, validated_data={})
    if default is not PydanticUndefined and default is not None:
        return default
    return _any(field.annotation, list(_flat(field.metadata)))


def _any(annotation: Any, metadata: list[Any]) -> Any:
    origin, members = get_origin(annotation), get_args(annotation)
    if origin is typing.Annotated:
        for rule in members[1:]:
            if getattr(rule, "examples", None):
                return rule.examples[0]
        return _any(members[0], list(_flat([*members[1:], *metadata])))
    if origin in (typing.Union, types.UnionType):
        return _any(next(member for member in members if member is not type(None)), metadata)
    if origin is Literal:
        return members[0]
    if origin is dict:
        return {}
    if annotation in (int, float):
        low: Any = next((getattr(rule, "ge", getattr(rule, "gt", None)) for rule in metadata if _is_low(rule)), 1)
        return low if any(type(rule) is at.Ge for rule in metadata) else low + 1
    return {bool: True, str: "name"}.get(annotation, [])


def _is_low(rule: Any) -> bool:
    return type(rule) in (at.Ge, at.Gt)


def as_text(value: Any) -> str:
    """A value as it is written on a command line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    if isinstance(value, list | tuple):
        return f"[{','.join(map(as_text, value))}]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}: {as_text(item)}" for key, item in value.items()) + "}"
    return str(value)


def _is_model(annotation: Any) -> bool:
    return inspect.isclass(annotation) and issubclass(annotation, BaseModel)
