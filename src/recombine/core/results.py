"""Rows on disk: one small JSON file for each run, written whole or not at all."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from recombine.core.columns import read_columns, write_columns
from recombine.core.errors import DamagedError, RecombineError
from recombine.core.files import read_json, write_json
from recombine.core.inputs import file_digest
from recombine.core.types import Row

__all__ = ["hide_paths", "publish", "read_rows", "write_rows"]

FORMAT = Row.__dataclass_fields__["format"].default
MOST_AS_JSON = 5_000
RUN_LEVEL = ("entry", "seed", "run", "group", "provenance", "format")
CELL_KEYS = {"use_original": "use_target_data"}
PNC_METHODS = {"tune": "finetune", "saved": "from_file"}
"""Cell keys, and methods of cloning, by their names in format 1."""
ROOTS = {"data_root": "$DATA", "weights_root": "$WEIGHTS", "cache_root": "$CACHE", "output_root": "$OUTPUT"}
ABSOLUTE_PATH = re.compile(r"(?<![\w.$~/:*-])(?:~/|/)[^\s'\",;:\]\[(){}=]+")


def write_rows(folder: Path, rows: Iterable[Row], name: str = "row.json") -> Path:
    """Write all rows of one run to `folder/name`; what the rows have in common is stored once, under `shared`.

    More than MOST_AS_JSON rows, if all are of one run that ended well, have their cells and metrics in a columnar file
    beside it.
    """
    rows = list(rows)
    if len(rows) > MOST_AS_JSON and all(row.status == "ok" for row in rows):
        beside = f"{name.removesuffix('.json')}s.parquet"
        write_columns(folder / beside, rows)
        shared = {key: value for key, value in rows[0].as_dict().items() if key in RUN_LEVEL}
        write_json(folder / name, {"shared": shared, "rows": beside, "rows_digest": file_digest(folder / beside)})
        return folder / name
    nodes = [row.as_dict() for row in rows]
    shared = {key: nodes[0][key] for key in RUN_LEVEL if nodes and all(node[key] == nodes[0][key] for node in nodes)}
    content = {"shared": shared, "rows": [{k: v for k, v in node.items() if k not in shared} for node in nodes]}
    write_json(folder / name, content)
    return folder / name


def read_rows(roots: str | Path | Iterable[str | Path]) -> list[Row]:
    """All rows below `roots` (folders, or single row files), in the order of the file names.

    Files named `row.json` or ending in `.row.json` are read; what `engine.resume=never` put aside is not.
    Raises RecombineError for a file that is no row file, is damaged, or of a newer format.
    """
    roots = [roots] if isinstance(roots, str | Path) else roots
    files: set[Path] = set()
    for root in map(Path, roots):
        found = [root] if root.name.endswith("row.json") else root.rglob("*row.json")
        files.update(file for file in found if _is_row_file(file))
    return [row for file in sorted(files) for row in _read(file)]


def _is_row_file(file: Path) -> bool:
    """Whether a run's rows belong here: a run's own folder, unlike the one of its earlier attempt, ends in a hash."""
    return file.name.endswith(".row.json") or (file.name == "row.json" and file.parent.name != "previous")


def _read(file: Path) -> list[Row]:
    mend = "remove it and repeat its run"
    try:
        content = read_json(file, needs_digest=False)
        beside = content["rows"]
        if "rows_digest" in content and file_digest(file.parent / beside) != content["rows_digest"]:
            raise DamagedError(file.parent / beside, "its content is not what was written")
        found = read_columns(file.parent / beside) if isinstance(beside, str) else beside
        rows = [{**content["shared"], **row} for row in found]
    except (DamagedError, OSError, ValueError, TypeError, KeyError) as error:
        raise RecombineError(f"{file} is not a row file, or damaged ({error}); {mend}") from error
    if not rows:
        raise RecombineError(f"{file} holds no rows; {mend}")
    known = {field.name for field in fields(Row)}
    rows = [_upgraded(row) if row.get("format") == 1 else row for row in rows]
    for row in rows:
        if row.get("format") != FORMAT or not known.issuperset(row):
            raise RecombineError(f"{file} has row format {row.get('format')}; this version reads format {FORMAT}")
    return [Row(**row) for row in rows]


def _upgraded(row: dict[str, Any]) -> dict[str, Any]:
    """A row of format 1 (before version 0.2) with the names of today in its cell."""
    cell = {CELL_KEYS.get(key, key): value for key, value in row["cell"].items()}
    if row["entry"] == "pnc":
        cell["method"] = PNC_METHODS.get(str(cell.get("method")), cell.get("method"))
    return {**row, "cell": cell, "format": FORMAT}


def publish(rows: Iterable[Row], folder: Path) -> list[Path]:
    """Write rows for others to read: one file per run, with no path of the machine they were measured on.

    Values of `data_root` and its kin become `$DATA`, `$WEIGHTS`, `$CACHE` and `$OUTPUT`, also inside the command;
    any other absolute path keeps only its last part.
    """
    runs: dict[str, list[Row]] = {}
    for row in rows:
        runs.setdefault(row.run, []).append(_without_paths(row))
    return [write_rows(folder, group, f"{run}.row.json") for run, group in runs.items()]


def _without_paths(row: Row) -> Row:
    config = row.provenance.get("config", {})
    cell, error, provenance = (hide_paths(part, config) for part in (row.cell, row.error, row.provenance))
    return replace(row, cell=cell, error=error, provenance=provenance)


def hide_paths(value: Any, config: Mapping[str, Any]) -> Any:
    """The same nested value without paths of this machine, whose folders `config` says; see `publish`."""
    roots = {str(config[key]): name for key, name in ROOTS.items() if "/" in str(config.get(key, ""))}

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {clean(key): clean(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [clean(item) for item in value]
        if not isinstance(value, str):
            return value
        for root in sorted(roots, key=len, reverse=True):
            value = re.sub(rf"(?<![\w./-]){re.escape(root)}(?![\w-])", roots[root].replace("\\", ""), value)
        return ABSOLUTE_PATH.sub(lambda match: f".../{Path(match[0]).name}", value)

    return clean(value)
