"""What a person sees at the end of a run."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from recombine.core.console import open_console

if TYPE_CHECKING:
    from recombine.core.types import Row

__all__ = ["first_rank", "show", "show_jobs", "show_problems", "show_rows"]

MOST_ROWS = 20
MOST_METRICS = 8
"""Of rows whose entry names no headline."""
MOST_OF_JOB = 4
"""Metrics of a job in the table of a multirun, so that its run fits beside them."""
MOST_FILES = 6


def first_rank() -> bool:
    """Whether this process is the one that writes and prints; known before the process group exists."""
    return os.environ.get("RANK", "0") == "0"


def show(table: Table) -> None:
    """Print a table, at full width where there is no terminal."""
    open_console().print(table)


def show_problems(problems: Sequence[str], *, started: bool = False) -> None:
    """Print what is wrong with a config, all at once, on stderr; `started`: it took a run to notice."""
    console = open_console(stderr=True)
    count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''} in the config"
    console.print(Text.assemble((count, "bold red"), "" if started else "; nothing was run"), soft_wrap=True)
    for problem in problems:
        first, *more = problem.splitlines()
        console.print(Text.assemble("  ", ("-", "red"), f" {first}"), soft_wrap=True)
        for line in more:
            console.print(f"    {line}", soft_wrap=True)


def show_rows(
    rows: Sequence[Row],
    folder: Path,
    published: Callable[[Row], Mapping[str, float]] | None = None,
    headline: Sequence[str] = (),
) -> None:
    """Print a run's rows, what they cost, the command that makes them, and where they and the networks are.

    `published` gives the published metrics of a row's cell, empty where there are none; `headline`: the metrics that
    are printed, where they are there.
    """
    console = open_console()
    if rows:
        common = [
            f"{key} {value}" for key, value in rows[0].cell.items() if all(r.cell.get(key) == value for r in rows)
        ]
        cells = [f"{len(rows)} cells"] if len(rows) > 1 else []
        console.print(f"\n{rows[0].entry}: {', '.join([*common, *cells])}", soft_wrap=True)
        console.print(_one(rows[0], published, headline) if len(rows) == 1 else _several(rows, headline))
        _tell_rest(rows, folder, headline)
    provenance = rows[0].provenance if rows else {}
    if (provenance.get("config", {}).get("engine") or {}).get("max_eval_batches") is not None:
        console.print("a trial: a part of the images was evaluated (engine.max_eval_batches); tables leave it out")
    if "seconds" in provenance:
        speed = provenance.get("images_per_second")
        console.print(f"time     {provenance['seconds']:.1f} s" + (f", {speed:,.0f} images/s" if speed else ""))
    if provenance.get("command"):
        console.print(f"command  {provenance['command']}", soft_wrap=True)
    files = provenance.get("files", [])
    for path in files[:MOST_FILES]:
        console.print(f"file     {path}", soft_wrap=True)
    if len(files) > MOST_FILES:
        console.print(f"         and {len(files) - MOST_FILES} more beside", soft_wrap=True)
    console.print(f"folder   {folder}", soft_wrap=True)


def _chosen(names: Iterable[str], headline: Sequence[str]) -> list[str]:
    """The metrics to print: those of the headline that are there, else the first few."""
    there = list(dict.fromkeys(names))
    return [name for name in headline if name in there] or there[:MOST_METRICS]


def _tell_rest(rows: Sequence[Row], folder: Path, headline: Sequence[str]) -> None:
    """How many rows and metrics the file has that were not printed."""
    names = dict.fromkeys(name for row in rows for name in row.metrics)
    counts = {"rows": len(rows[MOST_ROWS:]), "metrics": len(names) - len(_chosen(names, headline))}
    if rest := [f"{count} more {what}" for what, count in counts.items() if count]:
        open_console().print(f"... and {', '.join(rest)} in {folder / 'row.json'}", soft_wrap=True)


def _one(row: Row, published: Callable[[Row], Mapping[str, float]] | None, headline: Sequence[str]) -> Table:
    reference = published(row) if published else {}
    table = Table()
    table.add_column("metric")
    for column in ("ours", *(("published", "difference") if reference else ())):
        table.add_column(column, justify="right")
    for name in _chosen(row.metrics, headline):
        value, beside = row.metrics[name], []
        if reference:
            known = name in reference
            beside = [_number(reference[name]), f"{value - reference[name]:+.2f}"] if known else ["", ""]
        table.add_row(name, _number(value) + _interval(row.metrics, name), *beside)
    return table


def _interval(metrics: Mapping[str, float], name: str) -> str:
    """[low, high] of a metric that has an interval."""
    low, high = (metrics.get(f"{name}_{end}") for end in ("low", "high"))
    return "" if low is None or high is None else f" [{_number(low)}, {_number(high)}]"


def _several(rows: Sequence[Row], headline: Sequence[str]) -> Table:
    names = dict.fromkeys(key for row in rows for key in row.cell)
    cell = [name for name in names if any(row.cell.get(name) != rows[0].cell.get(name) for row in rows)]
    metrics = _chosen((key for row in rows for key in row.metrics), headline)
    table = Table()
    for name in cell:
        table.add_column(name, no_wrap=True)
    for name in metrics:
        table.add_column(name.replace("_", " "), justify="right")
    for row in rows[:MOST_ROWS]:
        absent = "" if row.status == "ok" else row.status
        values = [_number(row.metrics[name]) if name in row.metrics else absent for name in metrics]
        table.add_row(*(str(row.cell.get(name, "")) for name in cell), *values)
    return table


def _number(value: float) -> str:
    whole = isinstance(value, int) or (abs(value) >= 1000 and value == int(value))
    return f"{int(value):,}" if whole else f"{value:.3g}" if abs(value) < 0.1 else f"{value:.2f}"


def _show_results(jobs: Sequence[Mapping]) -> None:
    """A line for each job of a multirun: what distinguishes it, how it ended, what it came to, where its row is."""
    settings = [dict(word.partition("=")[::2] for word in shlex.split(job["command"]) if "=" in word) for job in jobs]
    differ = [key for one in settings[:1] for key in one if len({other.get(key) for other in settings}) > 1]
    headline: Sequence[str] = next((job["headline"] for job in jobs if job.get("headline")), [])
    metrics = _chosen((key for job in jobs for key in job["metrics"]), headline)[:MOST_OF_JOB]
    table = Table("job", *differ, "status")
    for name in metrics:
        table.add_column(name.replace("_", " "), justify="right")
    table.add_column("run", overflow="fold")
    for job, setting in list(zip(jobs, settings, strict=True))[:MOST_ROWS]:
        status = f"exit code {job['exit_code']}" if job["exit_code"] else "ok"
        values = [_number(job["metrics"][name]) if name in job["metrics"] else "" for name in metrics]
        values.append(Path(job["folder"]).name)
        table.add_row(str(job["job"]), *(setting.get(key, "") for key in differ), status, *values)
    show(table)


def show_jobs(jobs: Sequence[Mapping], filled: str | None = None) -> None:
    """Print how the jobs of a multirun ended and where their rows are, with the command of each that failed.

    `filled`: the table of a paper that they fill.
    """
    console = open_console()
    failed = [job for job in jobs if job["exit_code"]]
    _show_results(jobs)
    console.print(f"multirun: {len(jobs) - len(failed)} of {len(jobs)} jobs succeeded", style="red" if failed else "")
    for job in failed:
        console.print(f"  job {job['job']} failed (exit code {job['exit_code']}): {job['error']}", soft_wrap=True)
        console.print(f"    {job['command']}", soft_wrap=True)
    roots = " ".join(dict.fromkeys(shlex.quote(str(Path(job["folder"]).parent)) for job in jobs))
    shown = f"table {filled}" if filled else "report"
    console.print(f"show their rows: recombine {shown} --rows {roots}", soft_wrap=True)
    if failed:
        console.print("Repeat the multirun to run only what is missing.")
