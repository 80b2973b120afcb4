"""Everything the rows of finished runs hold as one HTML page, or as the tables and pictures of Markdown files."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from recombine.cli.entries import ENTRIES, register_papers
from recombine.cli.paths import add_rows, file, new_file, new_folder
from recombine.core.files import CONFIG_DIR, write_atomically
from recombine.core.results import publish
from recombine.report.html import page
from recombine.report.pivot import gather
from recombine.report.readme import fill, write_pictures
from recombine.report.spec import load_specs

LINKED = ("config.yaml", "metrics.jsonl", "traceback.txt")
TABLES = CONFIG_DIR / "table"
EXAMPLES = """examples:
  recombine report --rows outputs results --out report.html
  recombine report --rows results --readme README.md docs/results/*.md --pictures docs/images
  recombine report --rows outputs --publish results"""


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawTextHelpFormatter
    )
    add_rows(parser)
    parser.add_argument("--out", type=new_file, metavar="FILE", help="the page (default: report.html)")
    parser.add_argument("--title", default="Recombine: results", help="heading of the page")
    parser.add_argument(
        "--readme",
        nargs="+",
        type=file,
        default=[],
        metavar="FILE",
        help="Markdown files; their marked blocks are filled",
    )
    parser.add_argument(
        "--pictures", type=new_folder, metavar="DIR", help="PNG pictures: of the Markdown files, else all"
    )
    parser.add_argument(
        "--publish", type=new_folder, metavar="DIR", help="copies of the rows, without paths, to commit"
    )
    return parser.parse_args()


def links(roots: Sequence[str], base: Path) -> dict[str, list[str]]:
    """Config, log and traceback of each run below `roots`, as addresses seen from the folder `base`."""
    folders = {file.parent.name: file.parent for root in reversed(roots) for file in Path(root).rglob("row.json")}
    return {
        run: [os.path.relpath(folder / name, base) for name in LINKED if (folder / name).is_file()]
        for run, folder in folders.items()
    }


def main() -> None:
    """Write the page or the plots and print where they are."""
    options = arguments()
    register_papers()
    rows = gather(options.rows)
    specs = load_specs(TABLES)
    for document in options.readme:
        print(f"{document}: {fill(document, rows, specs, options.pictures)} blocks filled")
    if options.pictures and not options.readme:
        print(f"{options.pictures}: {len(write_pictures(rows, options.pictures))} pictures")
    if options.publish:
        for entry in dict.fromkeys(row.entry for row in rows):
            files = publish([row for row in rows if row.entry == entry], options.publish / entry)
            print(f"{options.publish / entry}: {len(files)} runs")
    if options.out or not (options.readme or options.pictures or options.publish):
        out = options.out or Path("report.html")
        about = {entry.name: entry.about for entry in ENTRIES.values()}
        first = {entry.name: entry.metric for entry in ENTRIES.values()}
        write_atomically(out, page(rows, specs, options.title, about, links(options.rows, out.parent), first))
        print(f"{out}: {len(rows)} rows, {out.stat().st_size / 1e6:.1f} MB")
