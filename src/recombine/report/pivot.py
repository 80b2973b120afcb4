"""From rows to a table: average over seeds, put published values beside ours, name what failed and what is missing."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from recombine.core.errors import ConfigError, did_you_mean
from recombine.core.results import read_rows
from recombine.core.types import Row
from recombine.report.aggregate import aggregate, binned
from recombine.report.columns import Layout, natural
from recombine.report.derived import derive
from recombine.report.mixing import cut_short, mixtures
from recombine.report.rows import distinct
from recombine.report.significance import not_worse
from recombine.report.spec import MetricColumn, TableSpec, excluded, matches

__all__ = ["BROKEN", "MissingCell", "Table", "build", "first_line", "gather", "has_rows"]


BROKEN = ("failed", "diverged", "interrupted", "missing")
"""What stands in the place of a value that is not there."""


@dataclass(frozen=True)
class MissingCell:
    """A cell without a value, why, and the command that measures it."""

    cell: dict[str, str]
    seed: int | None
    reason: str
    """missing, failed, diverged or interrupted."""
    command: str


@dataclass
class Table:
    """A finished table: text for readers (`headers`, `rows`, `notes`), numbers for machines (`frame`)."""

    title: str
    headers: list[str]
    rows: list[list[str]]
    keys: int
    """The first `keys` columns name the row; the others hold values."""
    notes: list[str] = field(default_factory=list)
    missing: list[MissingCell] = field(default_factory=list)
    frame: pd.DataFrame = field(default_factory=pd.DataFrame)
    """One row a cell: keys, then mean, std, n, published and difference of every metric, then status."""


def first_line(row: Row) -> str:
    """The first line of a row's error."""
    return (row.error or "no message").strip().splitlines()[0]


def gather(roots: Sequence[str]) -> list[Row]:
    """The distinct rows below all `roots`; a run found below two of them counts as the first one has it.

    Raises:
        ConfigError: there are none.
    """
    rows = distinct(row for root in roots for row in read_rows(root))
    if not rows:
        raise ConfigError(f"no rows below {', '.join(roots)}; finish a run first, or name other folders (--rows DIR)")
    return rows


def build(spec: TableSpec, rows: Iterable[Row], where: Mapping[str, Any] | None = None) -> Table:
    """Make the table `spec` from rows, of the cells that have the values of `where`.

    Raises:
        ConfigError: `where` names what no row of the entry has.
    """
    where = where or {}
    mine = [row for row in distinct(rows) if row.entry == spec.entry and not excluded(row.cell, spec.exclude)]
    mine = [binned(row, spec.bins) for row in derive(mine, spec.derived)]
    _refuse_unknown(where, {*spec.keys, *spec.where, *(key for row in mine for key in row.cell)})
    trials = [row for row in mine if cut_short(row) and _belongs(row.cell, spec, where)]
    mine = [row for row in mine if not cut_short(row)]
    measured = [row for row in mine if row.status == "ok" and _belongs(row.cell, spec, where)]
    failed = [row for row in mine if row.status != "ok" and _may_belong(row.cell, spec, where)]
    expected = _expected(spec, [*measured, *failed], where)
    frame = _frame(spec, measured, failed, expected)
    shown = Layout(spec, frame, where)
    table = Table(spec.title, shown.headers(), shown.rows(), len(shown.row_keys), frame=frame)
    table.missing = _missing(spec, frame, measured, failed)
    may = [row for row in mine if row.status == "ok" and _may_belong(row.cell, spec, where)]
    strangers = [row for row in may if not _belongs(row.cell, spec, where)]
    table.notes = [
        *shown.notes(),
        *([spec.note] if spec.note else []),
        *(_mixture(cell, frame, spec) for cell in frame.to_dict("records") if cell["status"] == "mixed"),
        *_warnings(spec, strangers, trials),
        *(_failure(row) for row in failed),
    ]
    return table


def has_rows(spec: TableSpec, rows: Iterable[Row], where: Mapping[str, Any]) -> bool:
    """Whether any of the measured rows may stand in the table; quick, where the answer is mostly no."""
    if spec.derived or spec.bins:
        return any(_may_belong(row.cell, spec, where) for row in rows)
    return any(_belongs(row.cell, spec, where) and not excluded(row.cell, spec.exclude) for row in rows)


def _refuse_unknown(where: Mapping[str, Any], known: set[str]) -> None:
    wrong = [f"--where {key}=...: rows have no {key}; {did_you_mean(key, known)}" for key in where if key not in known]
    if wrong:
        raise ConfigError(wrong)


def _belongs(cell: Mapping[str, Any], spec: TableSpec, where: Mapping[str, Any]) -> bool:
    return matches(cell, spec.where) and matches(cell, where) and all(key in cell for key in spec.keys)


def _may_belong(cell: Mapping[str, Any], spec: TableSpec, where: Mapping[str, Any]) -> bool:
    """Whether no known key contradicts; a run that failed early may not know all of its keys."""
    return all(matches(cell, {k: v for k, v in node.items() if k in cell}) for node in (spec.where, where))


def _key(cell: Mapping[str, Any], keys: Sequence[str]) -> tuple[str, ...]:
    return tuple(str(cell[key]) for key in keys)


def _expected(spec: TableSpec, rows: Sequence[Row], where: Mapping[str, Any]) -> dict[tuple[str, ...], None]:
    """Keys of all cells of the table, in natural order: seen, published, expected, and completing the pairs."""
    keys = spec.keys
    cells = {_key(row.cell, keys): None for row in rows if all(key in row.cell for key in keys)}
    cells |= {_key(cell, keys): None for cell in spec.expected_cells()}
    if spec.pairs:
        cells |= {cell: None for cell in _pairs(cells, *(keys.index(key) for key in spec.pairs))}
    selected = [cell for cell in cells if _may_belong(dict(zip(keys, cell, strict=True)), spec, where)]
    return dict.fromkeys(sorted(selected, key=lambda cell: [natural(value) for value in cell]))


def _pairs(cells: Iterable[tuple[str, ...]], first: int, second: int) -> list[tuple[str, ...]]:
    """Every ordered pair of different values at two places of the keys, among cells that agree in the others."""
    groups: dict[tuple, set[str]] = {}
    for cell in cells:
        rest = tuple("" if place in (first, second) else value for place, value in enumerate(cell))
        groups.setdefault(rest, set()).update((cell[first], cell[second]))
    return [
        tuple({first: a, second: b}.get(place, value) for place, value in enumerate(rest))
        for rest, names in groups.items()
        for a, b in itertools.permutations(names, 2)
    ]


def _frame(
    spec: TableSpec, measured: list[Row], failed: list[Row], expected: Mapping[tuple[str, ...], None]
) -> pd.DataFrame:
    """The numbers of the table, one row for each expected cell."""
    keys, metrics = spec.keys, list(spec.metrics)
    claims = {name: metric.claimed for name, metric in spec.metrics.items() if metric.claimed}
    mixed = mixtures(measured, keys, spec.average_over)
    measured = [row for row in measured if _key(row.cell, keys) not in mixed]
    ends = {name: _interval(name, metric) for name, metric in spec.metrics.items() if metric.interval}
    more = {name: MetricColumn(name) for name in [*claims.values(), *(end for pair in ends.values() for end in pair)]}
    means = aggregate(measured, keys, spec.metrics | more)
    numbers = dict(zip(means.index, means.to_dict("records"), strict=True))  # pandas looks single values up slowly
    published = {
        _key(cell, keys): {metric: float(cell[metric]) for metric in metrics if metric in cell}
        for cell in spec.published
        if all(key in cell for key in keys)
    }
    broken: dict[tuple, str] = {_key(r.cell, keys): r.status for r in failed if all(key in r.cell for key in keys)}
    stars = {name: _stars(spec, name, measured) for name, metric in spec.metrics.items() if metric.compare_by}
    records = []
    for cell in expected:
        record: dict[str, Any] = dict(zip(keys, cell, strict=True))
        place = cell if len(keys) > 1 else cell[0]
        found = numbers.get(place)
        for metric in metrics:
            mean, std, n = (found[metric, name] for name in ("mean", "std", "n")) if found else (np.nan, np.nan, 0)
            claim = found[claims[metric], "mean"] if found and metric in claims else np.nan
            paper = published.get(cell, {}).get(metric, claim)
            record |= {metric: mean, f"{metric}_std": std, f"{metric}_n": n or np.nan}
            record |= {f"{metric}_published": paper, f"{metric}_difference": mean - paper}
            record |= {f"{metric}_star": cell in stars[metric]} if metric in stars else {}
            if found and metric in ends:
                low, high = (found[end, "mean"] for end in ends[metric])
                record |= {f"{metric}_low": low, f"{metric}_high": high, f"{metric}_star": low > 0 or high < 0}
        incomplete = f", some {broken[cell]}" if cell in broken else ""
        record["status"] = f"ok{incomplete}" if found else broken.get(cell, "missing")
        record |= {"status": "mixed", "mixed": mixed[cell]} if cell in mixed else {}
        records.append(record)
    counts = {f"{metric}_n": "Int64" for metric in metrics if records}
    return pd.DataFrame(records).astype(counts).dropna(axis="columns", how="all")


def _interval(name: str, metric: MetricColumn) -> list[str]:
    """The metrics that hold the ends of a metric's interval."""
    return [f"{metric.metric or name}_{end}" for end in ("low", "high")]


def _stars(spec: TableSpec, name: str, rows: Sequence[Row]) -> set[tuple[str, ...]]:
    """The cells that are not significantly worse than the best of those they are compared with."""
    metric = spec.metrics[name]
    fields: dict[tuple, dict[tuple[str, ...], list[float]]] = {}
    for row in rows:
        value = row.metrics.get(metric.metric or name)
        compared = {str(row.cell.get(key)) for key in metric.compare_by}
        if value is not None and compared.isdisjoint(metric.exclude_from_comparison):
            place = _key(row.cell, [key for key in spec.keys if key not in metric.compare_by])
            fields.setdefault(place, {}).setdefault(_key(row.cell, spec.keys), []).append(value)
    return set().union(*map(not_worse, fields.values()))


def _missing(spec: TableSpec, frame: pd.DataFrame, measured: list[Row], failed: list[Row]) -> list[MissingCell]:
    """Cells (and, where the table lists seeds, seeds) without a value, each with its command."""
    keys = spec.keys
    have = {(_key(row.cell, keys), row.seed) for row in measured}
    broken = {(_key(row.cell, keys), row.seed): row for row in failed if all(key in row.cell for key in keys)}
    missing = [
        MissingCell({k: str(v) for k, v in row.cell.items()}, row.seed, row.status, row.provenance.get("command", ""))
        for row in failed
        if not all(key in row.cell for key in keys)
    ]
    for record in frame.to_dict("records"):
        cell = {key: record[key] for key in keys}
        place = _key(cell, keys)
        seeds = {*spec.seeds, *(seed for at, seed in broken if at == place)}
        if record["status"] == "missing" and not seeds:
            missing.append(MissingCell(cell, None, "missing", spec.command.format(**cell, seed=0)))
        for seed in sorted(seeds):
            row = broken.get((place, seed))
            if (place, seed) not in have:
                command = spec.command.format(**cell, seed=seed) if row is None else row.provenance.get("command")
                command = command or spec.command.format(**cell, seed=seed)
                missing.append(MissingCell(cell, seed, row.status if row else "missing", command))
    return missing


def _failure(row: Row) -> str:
    where = ", ".join(f"{key}={value}" for key, value in row.cell.items())
    return f"† {row.status}: {where}, seed={row.seed}, run {row.run}: {first_line(row)}"


def _mixture(cell: Mapping[Any, Any], frame: pd.DataFrame, spec: TableSpec) -> str:
    """Why a cell has no value although there are rows."""
    name = ", ".join(f"{key}={cell[key]}" for key in spec.keys if frame[key].nunique() > 1)
    return f"not averaged{name and f' ({name})'}: rows of different {cell['mixed']}; choose with --where or --rows"


def _warnings(spec: TableSpec, strangers: Sequence[Row], trials: Sequence[Row]) -> list[str]:
    """Rows that have no place."""
    texts = []
    if trials:
        texts.append(f"{len(trials)} rows are left out: a part of the images was evaluated (engine=debug)")
    if strangers:
        known = {key: f"{key} from {edges[0]:g} to {edges[-1]:g}" for key, edges in spec.bins.items()}
        absent = {key for row in strangers for key in {*spec.keys, *spec.where} - row.cell.keys()}
        lacking = sorted(known.get(key, key) for key in absent)
        texts.append(f"warning: {len(strangers)} rows are left out because they lack {', '.join(lacking)}")
    return texts
