"""Values of a wrong kind for every setting of every entry, as its own declaration has them."""

from __future__ import annotations

import random
import traceback
import typing
from collections.abc import Iterator
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from recombine.cli.entries import ENTRIES
from recombine.cli.overrides import compose_all
from recombine.core.errors import ConfigError
from recombine.core.files import CONFIG_DIR
from recombine.core.settings import Settings
from recombine.run.config import validate

from . import Case

__all__ = ["try_settings"]


def fields(schema: type[Settings], path: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting below a declaration, with its annotation."""
    for name, field in schema.model_fields.items():
        yield f"{path}{name}", field.annotation
        for member in (field.annotation, *typing.get_args(field.annotation)):
            if isinstance(member, type) and issubclass(member, Settings):
                yield from fields(member, f"{path}{name}.")


def _plain(annotation: Any) -> set[Any]:
    members = typing.get_args(annotation)
    return set().union(*map(_plain, members)) if members and not _is_literal(annotation) else {annotation}


def _is_literal(annotation: Any) -> bool:
    return typing.get_origin(annotation) is typing.Literal


def wrong_values(annotation: Any) -> list[str]:
    """Values that cannot be meant, by the kind of a setting alone; none where anything may be."""
    kinds = _plain(annotation)
    if kinds & {Any, dict, typing.Mapping} or any("Mapping" in str(k) or "dict" in str(k) for k in kinds):
        return []
    values = ["{a: {b: 1}}"]
    if not kinds & {str} and "Path" not in str(kinds):
        values += ["banana"]
    if kinds & {int, float, bool} and not kinds & {str}:
        values += ["nan", "'1'", "1e400"]
    if "list" not in str(annotation) and "Sequence" not in str(annotation) and "tuple" not in str(annotation):
        values += ["[[1]]"]
    return values


def try_settings(folder: Path, full: bool) -> Iterator[Case]:
    """Give each setting of each entry values of a wrong kind."""
    chosen = random.Random(0)
    for name, entry in ENTRIES.items():
        cases = [(path, value) for path, kind in fields(resolve_name(entry.settings)) for value in wrong_values(kind)]
        cases += [(f"+{path}.nonsense", "1") for path in ("engine", "dataset", "optimizer", "method")]
        for path, value in cases if full else chosen.sample(cases, 1):
            yield Case(name, f"{path}={value}", _judge(entry, f"{path}={value}"))


def _judge(entry: Any, override: str) -> str:
    try:
        found = compose_all(str(CONFIG_DIR), entry.config, [override])
        problems = list(found.problems)
        if found.cfg is not None:
            problems += validate(found.cfg, resolve_name(entry.settings), rules=False)
    except ConfigError:
        return "refused"
    except Exception:
        traceback.print_exc()
        return "traceback"
    return "refused" if problems else "accepted"
