"""One self-contained HTML page of what rows hold: overview, a table of runs to search and group, charts, tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from recombine.core.errors import ConfigError
from recombine.core.types import Row
from recombine.report.pivot import BROKEN, build, has_rows
from recombine.report.rows import distinct, settings
from recombine.report.spec import MetricColumn, TableSpec, everything
from recombine.report.style import chart_theme

__all__ = ["page"]

FILES = Path(__file__).parent / "page"
AXES = ("epoch", "requests", "front_cost", "reference_cost")
"""Series that others are drawn over."""
OVER = ("epoch", "requests")
"""Those that grow with the length of a run."""
POINTS, FEWEST = 300_000, 20
"""Of all curves together, above which they are thinned; of each curve, below which it is not."""
LONG = ("config", "inputs", "weights", "files")
"""Of the provenance, what is shown elsewhere or not at all."""
DIGITS = 5


def page(
    rows: Iterable[Row],
    specs: Mapping[str, TableSpec],
    title: str = "Recombine: results",
    about: Mapping[str, str] | None = None,
    links: Mapping[str, Sequence[str]] | None = None,
    first: Mapping[str, str] | None = None,
) -> str:
    """The report as one HTML document that loads nothing from anywhere.

    `about` says in a sentence what each entry is for; `links` lists files of a run, such as its config and log;
    `first` names the metric that is told first of an entry. Entries come in the order of `about`.
    Raises ConfigError if there are no rows.
    """
    rows = distinct(rows)
    if not rows:
        raise ConfigError("no rows to report on")
    environment = Environment(loader=FileSystemLoader(FILES), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    about = {entry: (about or {}).get(entry, "") for entry in [*(about or {}), *sorted({row.entry for row in rows})]}
    entries = {entry: mine for entry in about if (mine := [row for row in rows if row.entry == entry])}
    rows = [row for mine in entries.values() for row in mine]
    shown = {entry: _metrics(entry, specs, (first or {}).get(entry, "")) for entry in entries}
    papers = [_paper(entry, mine, specs, about[entry], shown[entry]) for entry, mine in entries.items()]
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False, "separators": (",", ":")}
    static = {name: Markup((FILES / file).read_text(encoding="utf-8")) for name, file in STATIC.items()}
    headlines = {entry: [*metrics] for entry, metrics in shown.items()}
    records = [_record(row) for row in rows]
    data = {"rows": records, "runs": _runs(rows, links or {}), "headlines": headlines, "thinned": _thin(records)}
    return environment.get_template("page.html.j2").render(
        title=title, papers=papers, facts=_facts(rows), data=data | {"theme": chart_theme()}, broken=BROKEN, **static
    )


STATIC = {"css": "page.css", "script": "page.js", "vega": "vega.js"}


def _paper(
    entry: str, rows: Sequence[Row], specs: Mapping[str, TableSpec], about: str, metrics: Mapping[str, MetricColumn]
) -> dict[str, Any]:
    """What the page says of an entry: counts, data sets, its tables, or without one a table of everything."""
    names = dict.fromkeys(" ".join(settings(row).values()) for row in rows)
    mine = [spec for spec in specs.values() if spec.entry == entry]
    measured = [row for row in rows if row.status == "ok"]
    places = [(spec, dict(part)) for part in _parts(measured) for spec in mine or [everything(entry, rows)]]
    tables = [build(spec, rows, where) for spec, where in places if has_rows(spec, measured, where)]
    shown = [table for table in tables if len(table.frame) and (table.frame["status"] != "missing").any()]
    found = {"facts": _facts(rows), "headline": _headline(metrics, measured), "settings": [*filter(None, names)]}
    return {"entry": entry, "about": about, "tables": shown, **found}


def _metrics(entry: str, specs: Mapping[str, TableSpec], first: str) -> dict[str, MetricColumn]:
    """The metrics of an entry's tables: `first`, then those of most tables."""
    mine = [spec for spec in specs.values() if spec.entry == entry]
    found = [(metric.metric or name, metric) for spec in mine for name, metric in spec.metrics.items()]
    often = Counter(name for name, _ in found)
    ordered = {name: metric for name, metric in sorted(found, key=lambda item: -often[item[0]])}
    return ({first: ordered.get(first, MetricColumn(first.replace("_", " "), format=".4g"))} if first else {}) | ordered


def _headline(metrics: Mapping[str, MetricColumn], rows: Sequence[Row]) -> str:
    """The first metric that there is: its median and range over rows."""
    for name, metric in metrics.items():
        values = [row.metrics[name] for row in rows if name in row.metrics]
        if values:
            low, middle, high = (format(value, metric.format) for value in (min(values), median(values), max(values)))
            return f"{metric.heading}: median {middle}, from {low} to {high}"
    return ""


def _parts(rows: Iterable[Row]) -> dict[tuple[tuple[str, str], ...], None]:
    return dict.fromkeys(tuple(settings(row).items()) for row in rows)


def _facts(rows: Sequence[Row]) -> dict[str, str]:
    """How much lies behind the numbers."""
    runs = {row.run: row for row in rows}
    seconds = sum(float(row.provenance.get("seconds") or 0) for row in runs.values())
    broken = sum(row.status != "ok" for row in rows)
    facts = {"runs": f"{len(runs):,}", "rows": f"{len(rows) - broken:,}", "seeds": str(len({row.seed for row in rows}))}
    facts |= {"did not finish": str(broken)} if broken else {}
    return facts | {"computing": f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 3600:.1f} h"}


def _record(row: Row) -> dict[str, Any]:
    """A row as the page's script reads it: with curves, numbers to five digits and lists (genes) as text."""
    axes = {len(row.series[axis]) for axis in AXES if row.series.get(axis)}
    series = {key: values for key, values in row.series.items() if len(values) in axes}
    curves = {key: _short(values) for key, values in series.items() if _numbers(values)}
    curves |= {key: [" ".join(map(str, one)) for one in values] for key, values in series.items() if _lists(values)}
    return {
        **{"entry": row.entry, "run": row.run, "group": row.group, "seed": row.seed, "status": row.status},
        **{"error": row.error or "", "cell": row.cell, "metrics": {k: _round(v) for k, v in row.metrics.items()}},
        "series": curves,
    }


def _thin(records: Sequence[dict[str, Any]]) -> bool:
    """Keep every so many points of long curves, first and last among them, in place; whether that was needed."""
    total = sum(len(values) for record in records for values in record["series"].values())
    for record in records if total > POINTS else ():
        series = record["series"]
        for count in {len(series[axis]) for axis in OVER if axis in series}:
            kept = min(count, max(FEWEST, count * POINTS // total))
            places = [round(k * (count - 1) / (kept - 1)) for k in range(kept)] if kept > 1 else range(kept)
            for name, values in series.items():
                if len(values) == count and not name.startswith(("front_", "reference_")):
                    series[name] = [values[place] for place in places]
    return total > POINTS


def _lists(values: Sequence[Any]) -> bool:
    return bool(values) and all(isinstance(value, list) for value in values)


def _numbers(values: Sequence[Any]) -> bool:
    return all(isinstance(value, int | float | None) for value in values)


def _short(values: Sequence[Any]) -> list[Any]:
    return [_round(value) for value in values]


def _round(value: Any) -> Any:
    """To five digits; what is not finite cannot be JSON."""
    if not isinstance(value, float):
        return value
    return float(f"{value:.{DIGITS}g}") if abs(value) < float("inf") else None


def _runs(rows: Sequence[Row], links: Mapping[str, Sequence[str]]) -> dict[str, dict[str, Any]]:
    """What is known of each run: command, commit, device, times, its files, and how its config differs.

    The first run of an entry has its whole config, the others what differs from it.
    """
    first: dict[str, dict[str, Any]] = {}
    runs = {}
    for name, row in {row.run: row for row in rows}.items():
        config = _flat(row.provenance.get("config") or {})
        base = first.setdefault(row.entry, config)
        changed = {key: config.get(key) for key in base | config if base.get(key) != config.get(key)}
        differs = config if base is config else changed
        about = {key: value for key, value in row.provenance.items() if key not in LONG}
        runs[name] = about | {"config": differs, "links": list(links.get(name, ()))}
    return runs


def _flat(node: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(node, Mapping):
        return {prefix: node}
    return {k: v for key, value in node.items() for k, v in _flat(value, f"{prefix}.{key}" if prefix else key).items()}
