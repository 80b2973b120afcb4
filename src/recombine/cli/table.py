"""A table of config/table from the rows of finished runs: on the terminal, as Markdown, LaTeX or CSV."""

from __future__ import annotations

import argparse
from dataclasses import replace

from recombine.cli.entries import register_papers
from recombine.cli.paths import add_rows, new_file
from recombine.core.console import open_console
from recombine.core.errors import ConfigError
from recombine.core.files import CONFIG_DIR, write_atomically
from recombine.report.formats import FORMATS, render, terminal
from recombine.report.pivot import Table, build, gather
from recombine.report.spec import load_specs, pick

TABLES = CONFIG_DIR / "table"
EXAMPLES = """examples:
  recombine table --list
  recombine table flips/pairs --where dataset=cifar10
  recombine table flips/matrix --format latex --out matrix.tex
  recombine table pretrain/accuracies --missing | sh"""


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("table", nargs="?", help="its name, as flips/pairs")
    parser.add_argument("--list", action="store_true", help="show all tables")
    add_rows(parser)
    parser.add_argument("--where", nargs="+", default=[], metavar="KEY=VALUE", help="only cells with these values")
    parser.add_argument(
        "--average-over", nargs="+", default=[], metavar="KEY", help="settings that the rows of a cell may differ in"
    )
    parser.add_argument("--format", metavar="|".join(FORMATS), help="default: a table for the terminal")
    parser.add_argument("--out", type=new_file, metavar="FILE", help="write there; its suffix may say the format")
    parser.add_argument("--missing", action="store_true", help="print the commands of cells without a value")
    return parser.parse_args()


def main() -> None:
    """Print or write the table."""
    options = arguments()
    register_papers()
    specs = load_specs(TABLES)
    if options.list or not options.table:
        for name, spec in specs.items():
            print(f"{name:28} {spec.title}")
        return
    spec = pick(specs, options.table)
    wrong = [pair for pair in options.where if "=" not in pair]
    if wrong:
        raise ConfigError(f"--where takes KEY=VALUE, not {', '.join(wrong)} (--where dataset=cifar10)")
    spec = replace(spec, average_over=[*spec.average_over, *options.average_over])
    table = build(spec, gather(options.rows), dict(pair.split("=", 1) for pair in options.where))
    if options.missing:
        show_missing(table)
    elif not table.rows:
        condition = f" with {' '.join(options.where)}" if options.where else ""
        raise ConfigError(f"none of the rows below {', '.join(options.rows)} belongs to {options.table}{condition}")
    else:
        show(table, options)


def show(table: Table, options: argparse.Namespace) -> None:
    """Print the table, or write it to --out."""
    suffixes = {".md": "markdown", ".tex": "latex", ".csv": "csv"}
    format_ = options.format or (suffixes.get(options.out.suffix, options.out.suffix) if options.out else None)
    if format_ is None:
        console = open_console()
        console.print(terminal(table, console.width))
        return
    text = render(table, format_)
    if options.out is None:
        print(text, end="")
        return
    write_atomically(options.out, text)
    print(f"{options.out}: {len(table.rows)} rows")


def show_missing(table: Table) -> None:
    """A command a line, the reason behind it as a comment: fit for a shell."""
    for gap in table.missing:
        cell = ", ".join(f"{key}={value}" for key, value in gap.cell.items())
        seed = "" if gap.seed is None else f", seed={gap.seed}"
        print(f"{gap.command}  # {gap.reason}: {cell}{seed}")
    if not table.missing:
        print("# nothing is missing")
