"""Rows of tables that compare runs or take them apart, made of the measured ones."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from recombine.core.errors import ConfigError, did_you_mean
from recombine.core.types import Row
from recombine.report.registry import DERIVED

__all__ = ["check", "derive"]


def check(table: str, node: Mapping[str, Any]) -> None:
    """Raise ConfigError if `derived` of a table names no function or options that it does not take."""
    name = node.get("function")
    if name not in DERIVED:
        raise ConfigError(f"{table}: `derived` needs a function; {did_you_mean(str(name), DERIVED, show=99)}")
    allowed = list(inspect.signature(DERIVED[name]).parameters)[1:]
    wrong = [key for key in node if key not in ("function", *allowed)]
    if wrong:
        raise ConfigError(f"{table}: {name} takes {', '.join(allowed) or 'no options'}, not {', '.join(wrong)}")


def derive(rows: Sequence[Row], node: Mapping[str, Any]) -> list[Row]:
    """The rows that the function which `derived` names makes of these; without one, these."""
    if not node:
        return list(rows)
    return DERIVED[node["function"]](rows, **{key: value for key, value in node.items() if key != "function"})
