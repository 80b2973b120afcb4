"""Which rows of one cell are no repetitions of one measurement: their average would be a result of neither."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from recombine.core.settings import VOLATILE
from recombine.core.types import Row

__all__ = ["cut_short", "mixtures"]

LISTS = ("models", "tasks", "teachers", "sources")
"""What a run measures several cells of: another list is another run of the same cell."""


def cut_short(row: Row) -> bool:
    """Whether the row is a trial, as engine=debug makes: a part of the images was evaluated."""
    engine = row.provenance.get("config", {}).get("engine")
    return isinstance(engine, Mapping) and engine.get("max_eval_batches") is not None


def mixtures(rows: Iterable[Row], keys: Sequence[str], averaged: Sequence[str]) -> dict[tuple[str, ...], str]:
    """Cells of a table whose rows differ in more than the seed and the keys that are `averaged`, and in what."""
    places: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        places.setdefault(tuple(str(row.cell.get(key)) for key in keys), []).append(row)
    found = {place: _difference(group, keys, averaged) for place, group in places.items()}
    return {place: text for place, text in found.items() if text}


def _difference(rows: Sequence[Row], keys: Sequence[str], averaged: Sequence[str]) -> str:
    for key in dict.fromkeys(key for row in rows for key in row.cell if key not in (*keys, *averaged)):
        values = {str(row.cell.get(key)) for row in rows}
        if len(values) > 1:
            return f"{key} = {', '.join(sorted(values))}"
    cells: dict[tuple, list[Row]] = {}
    for row in rows:
        cells.setdefault(tuple(sorted((key, str(value)) for key, value in row.cell.items())), []).append(row)
    return next((text for group in cells.values() if (text := _settings(group, averaged))), "")


def _settings(rows: Sequence[Row], averaged: Sequence[str]) -> str:
    """In what the settings and data of rows of one cell differ."""
    first = rows[0]
    for row in rows[1:]:
        if row.run == first.run:
            continue
        for what, old, new in (("", _config(first), _config(row)), ("data ", _data(first), _data(row))):
            for key in sorted(old.keys() & new.keys() - {*averaged}):
                if old[key] != new[key]:
                    return f"{what}{key} = {old[key]}, {new[key]} (runs {first.run}, {row.run})"
        if row.seed == first.seed and not _equal(row.metrics, first.metrics):
            return f"runs {first.run}, {row.run}"
    return ""


def _equal(one: Mapping[str, float], other: Mapping[str, float]) -> bool:
    return all(math.isclose(one[key], other[key], rel_tol=1e-6) for key in one.keys() & other.keys())


def _config(row: Row) -> dict[str, Any]:
    """Settings that decide about the result, by their dotted names."""
    found: dict[str, Any] = {}

    def visit(node: Mapping[str, Any], prefix: str) -> None:
        for key, value in node.items():
            name = f"{prefix}{key}"
            if name in (*VOLATILE, *LISTS, "seed", "save_as", "wandb"):
                continue
            if isinstance(value, Mapping):
                visit(value, f"{name}.")
            else:  # a class is the same one wherever its module lies
                found[name] = str(value).rpartition(".")[2] if key == "_target_" else value

    visit(row.provenance.get("config", {}), "")
    return found


def _data(row: Row) -> dict[str, str]:
    """Digest of each data set that was read."""
    inputs = row.provenance.get("inputs", {})
    return {key.removeprefix("data "): str(digest)[:8] for key, digest in inputs.items() if key.startswith("data ")}
