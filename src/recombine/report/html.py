"""One self-contained HTML page of everything the rows hold: plots, sortable tables, failures, provenance."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

from recombine.core.errors import ConfigError
from recombine.core.types import Row
from recombine.report.layout import natural
from recombine.report.registry import PLOTS, Plot
from recombine.report.rows import distinct, parts, together
from recombine.report.spec import TableSpec, everything
from recombine.report.style import svg
from recombine.report.tables import Table, build, first_line

__all__ = ["page", "table_html"]

HERE = Path(__file__).parent
BROKEN = ("failed", "diverged", "interrupted", "missing")
HALF_PAGE = 6.6
"""Inches; wider pictures take the full width of the page."""
PROVENANCE = {
    "device": "device",
    "seconds": "seconds",
    "images_per_second": "images/s",
    "peak_memory_mib": "peak MiB",
}


def page(rows: Iterable[Row], specs: Mapping[str, TableSpec], title: str = "Recombine: results") -> str:
    """The report as one HTML document that loads nothing from anywhere.

    Raises:
        ConfigError: there are no rows.
    """
    rows = distinct(rows)
    if not rows:
        raise ConfigError("no rows to report on")
    failed = [row for row in rows if row.status != "ok"]
    measured = [row for row in rows if row.status == "ok"]
    found = {
        (entry, *part): mine
        for entry in dict.fromkeys(row.entry for row in measured)
        for part, mine in parts(row for row in measured if row.entry == entry).items()
    }
    order = sorted(found, key=lambda part: [natural(str(part[0])), *(natural(value) for _, value in part[1:])])
    sections = [_section(f"s{i}", part, found, rows, specs) for i, part in enumerate(order)]
    body = [_header(title, rows), _failures(failed), *sections]
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{(HERE / "page.css").read_text(encoding="utf-8")}</style>
</head>
<body>
<div class="layout">
{_navigation(order, failed)}
<main>
{"".join(body)}
<footer>Made from the rows of the runs alone by <code>scripts/report.py</code>; no number was typed by hand.</footer>
</main>
</div>
<script>{(HERE / "page.js").read_text(encoding="utf-8")}</script>
</body>
</html>
"""


def _heading(part: Sequence) -> str:
    return ", ".join(f"fraction {value}" if key == "fraction" else value for key, value in part[1:]) or "all"


def _navigation(order: Sequence[tuple], failed: Sequence[Row]) -> str:
    links = ['<a class="bad" href="#failures">Did not finish</a>'] if failed else []
    for place, part in enumerate(order):
        if place == 0 or order[place - 1][0] != part[0]:
            links.append(f'<p class="soft entry">{escape(part[0])}</p>')
        links.append(f'<a href="#s{place}">{escape(_heading(part))}</a>')
    return f'<nav aria-label="Sections">{"".join(links)}</nav>'


def _facts(rows: Sequence[Row]) -> str:
    """How much lies behind the numbers, as small tiles."""
    once = {row.run: row for row in rows}.values()
    seconds = sum(float(row.provenance.get("seconds") or 0) for row in once)
    counts = {"measured cells": sum(row.status == "ok" for row in rows), "runs": len(once)}
    counts |= {"seeds": len({row.seed for row in rows}), "did not finish": sum(row.status != "ok" for row in rows)}
    tiles = [(f"{value:,}", name) for name, value in counts.items() if value or name != "did not finish"]
    if seconds:
        tiles.append((f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 3600:.1f} h", "computing"))
    return (
        '<div class="facts">'
        + "".join(f"<div class=fact><b>{b}</b><span>{s}</span></div>" for b, s in tiles)
        + "</div>"
    )


def _header(title: str, rows: Sequence[Row]) -> str:
    codes = sorted({_code(row) for row in rows if row.provenance.keys() & {"commit", "version"}})
    text = f"from {', '.join(codes)}" if codes else ""
    return (
        f'<header><div class="kicker">RECOMBINE</div><h1>{escape(title)}</h1>'
        f'<p class="soft">{escape(text)}</p></header>{_facts(rows)}'
    )


def _code(row: Row) -> str:
    """The commit that measured a row; of an installed copy, the version."""
    if "commit" not in row.provenance:
        return f"version {row.provenance.get('version', 'unknown')}"
    changed = " (with local changes)" if row.provenance.get("dirty") else ""
    return f"commit {row.provenance['commit'][:12]}{changed}"


def _failures(failed: Sequence[Row]) -> str:
    """The runs without a result, each with its error and the command that repeats it."""
    if not failed:
        return ""
    entries = []
    for row in failed:
        cell = ", ".join(f"{key}={value}" for key, value in row.cell.items())
        entries.append(
            f'<details><summary><span class="badge">{escape(row.status)}</span><b>{escape(row.entry)}</b> '
            f"{escape(cell)}, seed {row.seed}: {escape(first_line(row))}</summary>"
            f"<pre>{escape(row.error or 'no message')}</pre>"
            f"<p class=soft>run {escape(row.run)}; to repeat it:</p>"
            f"<pre>{escape(str(row.provenance.get('command', '')))}</pre></details>"
        )
    count = f"{len(failed)} run{'s' if len(failed) > 1 else ''} did not finish"
    return f'<section class="card failures" id="failures"><h2>{count}</h2>{"".join(entries)}</section>'


def _section(
    name: str, part: tuple, found: Mapping[tuple, list[Row]], every: list[Row], specs: Mapping[str, TableSpec]
) -> str:
    """All there is to one entry in one setting."""
    rows, entry, where = found[part], part[0], dict(part[1:])
    settings = {other[1:]: members for other, members in found.items() if other[0] == entry}
    pictures = [
        _picture(picture, together(settings, part[1:], picture.across)) for picture in PLOTS.get(entry, {}).values()
    ]
    pictures = [picture for picture in pictures if picture]
    mine = [spec for spec in specs.values() if spec.entry == entry] or [everything(entry, rows)]
    built = [build(spec, every, where) for spec in mine]
    tables = [table_html(table) for table in built if len(table.frame) and (table.frame["status"] != "missing").any()]
    grid = f'<div class="pictures">{"".join(pictures)}</div>' if pictures else ""
    return (
        f'<section><h2 id="{name}">{escape(entry)} · {escape(_heading(part))}</h2>{_facts(rows)}'
        f"{grid}{''.join(tables)}{_provenance(rows)}</section>"
    )


def _picture(picture: Plot, rows: Sequence[Row]) -> str:
    try:
        figure = picture.draw(rows)
    except ConfigError:  # these rows do not hold what the plot shows
        return ""
    data = base64.b64encode(svg(figure).encode()).decode()
    inches = figure.get_figwidth()
    wide = " wide" if inches > HALF_PAGE else ""
    return (
        f'<figure class="card{wide}"><h3>{escape(picture.title)}</h3>'
        f"<figcaption>{escape(picture.caption)}</figcaption>"
        f'<img style="max-width:{110 * inches:.0f}px" alt="{escape(picture.title)}" '
        f'src="data:image/svg+xml;base64,{data}"></figure>'
    )


def table_html(table: Table) -> str:
    """A table as a card with sortable columns and its notes."""
    kinds = ["" if place < table.keys else ' class="number"' for place in range(len(table.headers))]
    head = "".join(
        f"<th scope=col{kind}><button type=button>{escape(text)}</button></th>"
        for kind, text in zip(kinds, table.headers, strict=True)
    )
    lines = []
    for line in table.rows:
        cells = [
            f'<td class="number bad">{escape(text)}</td>' if text in BROKEN else f"<td{kind}>{escape(text)}</td>"
            for kind, text in zip(kinds, line, strict=True)
        ]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    notes = "".join(f"<li>{escape(note)}</li>" for note in table.notes)
    return (
        f'<div class="card"><h3>{escape(table.title)}</h3><div class="scroll"><table class="sortable">'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
        f"{f'<ul class=notes>{notes}</ul>' if notes else ''}</div>"
    )


def _provenance(rows: Sequence[Row]) -> str:
    """Where every number comes from: command, commit, device, time, versions and settings of each run."""
    runs = {row.run: row for row in rows}
    entries = []
    for name, row in sorted(runs.items(), key=lambda item: natural(item[0])):
        known = [
            f"{label} {_short(row.provenance[key])}" for key, label in PROVENANCE.items() if row.provenance.get(key)
        ]
        known.insert(0, _code(row))
        rest = {key: value for key, value in row.provenance.items() if key not in (*PROVENANCE, "command")}
        entries.append(
            f'<details class="run"><summary><b>{escape(name)}</b> <span class="soft">seed {row.seed}'
            f"{escape('; '.join(['', *known]))}</span></summary>"
            f"<pre>{escape(str(row.provenance.get('command', 'command not recorded')))}</pre>"
            f"<pre>{escape(json.dumps(rest, indent=2, ensure_ascii=False, default=str))}</pre></details>"
        )
    summary = f"Provenance of {len(runs)} run{'s' if len(runs) > 1 else ''}"
    return f'<details class="card"><summary><b>{summary}</b></summary>{"".join(entries)}</details>'


def _short(value: object) -> str:
    return f"{value:,.1f}" if isinstance(value, float) else str(value)
