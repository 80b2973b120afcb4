"""Many rows as one columnar file: what a study of 300 networks has, in a few megabytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recombine.core.files import replacing
from recombine.core.types import Row

__all__ = ["read_columns", "write_columns"]

PARTS = ("cell", "metrics", "series")


def write_columns(path: Path, rows: Sequence[Row]) -> None:
    """Write cells, metrics and series as Parquet: a column for each name, empty where a row lacks it."""
    import pyarrow
    from pyarrow import parquet

    names = {part: dict.fromkeys(name for row in rows for name in getattr(row, part)) for part in PARTS}
    columns = {
        f"{part}.{name}": [getattr(row, part).get(name) for row in rows] for part in PARTS for name in names[part]
    }
    with replacing(path) as temporary:
        parquet.write_table(pyarrow.table(columns), temporary, compression="zstd")


def read_columns(path: Path) -> list[dict[str, Any]]:
    """What `write_columns` wrote, as mappings with cell, metrics and series."""
    from pyarrow import parquet

    table = parquet.read_table(path).to_pydict()
    columns: dict[str, dict[str, list]] = {part: {} for part in PARTS}
    for name, values in table.items():
        part, _, rest = name.partition(".")
        columns[part][rest] = values
    length = len(next(iter(table.values()), []))
    return [{part: _present(columns[part], place) for part in PARTS} for place in range(length)]


def _present(columns: Mapping[str, list], place: int) -> dict[str, Any]:
    return {name: column[place] for name, column in columns.items() if column[place] is not None}
