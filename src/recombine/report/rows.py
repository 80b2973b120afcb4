"""Which rows are one measurement, one method and one setting."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from recombine.core.errors import ConfigError
from recombine.core.types import Row

__all__ = ["SETTINGS", "distinct", "named", "one_setting", "parts", "settings", "together"]

SETTINGS = ("dataset", "split", "fraction")
"""Cell keys whose values are never mixed in one picture."""


def named(row: Row) -> Row:
    """The row with its method's variant, if it is not the standard form, in its name as in `method=paper/xekl`."""
    variant = row.cell.get("variant", "standard")
    cell = {key: value for key, value in row.cell.items() if key != "variant"}
    if variant != "standard":
        cell["method"] = f"{variant}/{cell['method']}"
    return replace(row, cell=cell)


def distinct(rows: Iterable[Row]) -> list[Row]:
    """Named rows without repetitions: of one run's cell found twice (outputs and results), the first is kept."""
    unique: dict[tuple, Row] = {}
    for row in map(named, rows):
        unique.setdefault((row.entry, row.run, row.seed, *sorted((k, str(v)) for k, v in row.cell.items())), row)
    return list(unique.values())


def settings(row: Row) -> dict[str, str]:
    """What distinguishes the row from others of its entry: its dataset, split and fraction of the training images."""
    return {key: str(row.cell[key]) for key in SETTINGS if key in row.cell}


def parts(rows: Iterable[Row]) -> dict[tuple[tuple[str, str], ...], list[Row]]:
    """Rows by their settings."""
    found: dict[tuple[tuple[str, str], ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(settings(row).items()), []).append(row)
    return found


def together(found: Mapping[tuple, list[Row]], part: tuple, across: Sequence[str]) -> list[Row]:
    """The rows of a part of `parts`, with those of all parts that differ from it in the settings `across` alone.

    The latter only for the first of them: a picture across settings is shown once.
    """
    rest = [item for item in part if item[0] not in across]
    alike = [other for other in found if [item for item in other if item[0] not in across] == rest]
    return [row for other in alike for row in found[other]] if part == alike[0] else []


def one_setting(rows: Sequence[Row], across: Sequence[str] = ()) -> None:
    """Check that no picture mixes settings, but those that it is `across`.

    Raises:
        ConfigError: the rows differ in one; says in which, and what to add.
    """
    problems = []
    for key in (name for name in SETTINGS if name not in across):
        values = sorted({settings(row).get(key, "none") for row in rows})
        if len(values) > 1:
            problems.append(
                f"the rows mix {key} = {', '.join(values)} in one picture; add {key}={values[-1]} or another"
            )
    if problems:
        raise ConfigError(problems)
