"""Measures parts of the project against a baseline, in one process and in turns: the speedup of each.

python scripts/bench.py                         every section
python scripts/bench.py engine --rows outputs   one section; its rows also go to outputs/bench/
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import torch

from recombine.cli.paths import new_folder
from recombine.core.results import write_rows
from recombine.core.types import Row
from recombine.run import provenance
from recombine.run.console import show_rows

SECTIONS = (
    "engine",
    "accelerator",
    "loader",
    "flips",
    "library",
    "transfer",
    "patch",
    "pnc",
    "stitch",
    "races",
    "report",
)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="section", help=f"any of: {', '.join(SECTIONS)}")
    parser.add_argument("--rows", type=new_folder, default=Path("outputs"), help="folder below which the rows are kept")
    parser.add_argument("--threads", type=int, help="threads of torch (default: torch's own choice)")
    options = parser.parse_args()
    unknown = [name for name in options.sections if name not in SECTIONS]
    if unknown:
        parser.error(f"unknown section {', '.join(unknown)}; there are: {', '.join(SECTIONS)}")
    return options


def measured(section: str, threads: int | None) -> list[Row]:
    """The rows of one section, with where they come from."""
    if threads:
        torch.set_num_threads(threads)
    timing = import_module("benches.timing")
    watch = provenance.Stopwatch(timing.the_device())
    rows = list(import_module(f"benches.{section}").measure())
    record = {"command": f"python scripts/bench.py {section}" + (f" --threads {threads}" if threads else "")}
    record |= {**provenance.commit(), "versions": provenance.versions()}
    record |= {"device": provenance.device_name(timing.the_device()), **watch.read()}
    name = f"bench-{section}-{timing.the_device().type}"
    common = {"entry": "bench", "run": name, "group": name, "provenance": record}
    return [replace(row, cell={"section": section, **row.cell}, **common) for row in rows]


def main() -> None:
    """Measure the sections that were asked for, show and keep their rows."""
    options = arguments()
    for section in options.sections or SECTIONS:
        rows = measured(section, options.threads)
        folder = options.rows / "bench"
        write_rows(folder, rows, f"{rows[0].run}.row.json")
        show_rows(rows, folder)


if __name__ == "__main__":
    main()
