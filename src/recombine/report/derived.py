"""Rows of tables that compare runs or take them apart, made of the measured ones."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from recombine.core.errors import ConfigError, did_you_mean
from recombine.core.types import Row
from recombine.report.registry import DERIVED, register_derived

__all__ = ["check", "derive", "from_config"]


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


def from_config(rows: Sequence[Row], keys: Mapping[str, str]) -> list[Row]:
    """Rows with more keys in their cells: settings of the run by their dotted names, `none` where it has none.

    Example: `derived: {function: from_config, keys: {epochs: engine.epochs}}`.
    """
    return [replace(row, cell=row.cell | {key: _setting(row, name) for key, name in keys.items()}) for row in rows]


def _setting(row: Row, name: str) -> Any:
    node: Any = row.provenance.get("config", {})
    for part in name.split("."):
        node = node.get(part, "none") if isinstance(node, Mapping) else "none"
    return node


register_derived("from_config", from_config)
