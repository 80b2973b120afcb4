"""Workspaces of wandb for each entry and reports for each table: as JSON to look at, or saved on wandb."""

from __future__ import annotations

import argparse
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from recombine.cli.entries import ENTRIES, register_papers
from recombine.cli.paths import add_rows, new_folder
from recombine.core.errors import ConfigError
from recombine.core.files import CONFIG_DIR, config_files, write_atomically
from recombine.core.results import read_rows
from recombine.report.dashboards import as_json, report, workspace
from recombine.report.formats import markdown
from recombine.report.pivot import build
from recombine.report.spec import load_specs

EXAMPLES = """examples:
  recombine dashboards --out dashboards                        (JSON files; no server is asked)
  recombine dashboards --entry transfer --upload --entity me   (saved on wandb, in the project recombine)"""


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--entry", nargs="+", choices=ENTRIES, default=list(ENTRIES), help="default: all")
    parser.add_argument("--project", default="recombine", help="project of wandb (default: recombine)")
    parser.add_argument("--entity", help="user or team of wandb")
    add_rows(parser, "rows of the tables in reports")
    parser.add_argument("--out", type=new_folder, metavar="DIR", help="write each as a JSON file")
    parser.add_argument("--upload", action="store_true", help="save each on wandb")
    return parser.parse_args()


def main() -> None:
    """Build everything, write or save it, and print where it is."""
    options = arguments()
    if find_spec("wandb_workspaces") is None:
        raise ConfigError("wandb-workspaces is not installed; pip install 'recombine[dashboards]'")
    if options.upload and not options.entity:
        raise ConfigError("--upload needs the user or team that owns the project (--entity me)")
    if not options.upload and not options.out:
        raise ConfigError("say where to: --out dashboards writes JSON files, --upload saves on wandb")
    for name, made in everything(options):
        if options.out:
            file = options.out / f"{name}.json"
            write_atomically(file, json.dumps(as_json(made), indent=1) + "\n")
            print(file)
        if options.upload:
            print(getattr(made.save(), "url", name))


def everything(options: argparse.Namespace) -> list[tuple[str, Any]]:
    """By name: the workspace of each entry, the report of each of its tables."""
    register_papers()
    specs, rows = load_specs(CONFIG_DIR / "table"), read_rows([root for root in options.rows if Path(root).exists()])
    made: list[tuple[str, Any]] = []
    for entry in options.entry:
        mine = [spec for spec in specs.values() if spec.entry == entry]
        made.append((entry, workspace(entry, mine, options.project, options.entity or "")))
        for spec in mine:
            table = build(spec, [row for row in rows if row.entry == entry])
            filled = markdown(table) if table.rows else ""
            known = spec.name.rpartition("/")[2] in config_files(f"experiment/{entry}")
            command = f"recombine {entry} experiment={spec.name}" if known else spec.command or f"recombine {entry}"
            entity = options.entity if options.upload else None
            made.append((spec.name, report(spec, filled, command, options.project, entity)))
    return made
