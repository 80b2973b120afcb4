"""Look at a folder of images before anything is trained on it: classes, images of each split, files that are not used.

recombine inspect_data my/images

Exit code 2 where nothing could be trained on it, with every reason. Experiments do the same by themselves.
"""

from __future__ import annotations

import argparse

from rich.table import Table

from recombine.cli.paths import existing_folder
from recombine.core.console import open_console
from recombine.core.errors import ConfigError
from recombine.data.inspection import Inspection, inspect
from recombine.data.sources import open_source

__all__ = ["main"]

SHOWN = 50


def main() -> None:
    """Print what there is, then what is odd; ConfigError with everything that is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "folder", type=existing_folder, help="class folders with images, or train/, val/ and test/ with them"
    )
    parser.add_argument("--all", action="store_true", help=f"list all files, not the first {SHOWN} of each kind")
    options = parser.parse_args()
    found = inspect(open_source("folder", ".", options.folder, False))
    console = open_console()
    console.print(as_table(found))
    console.print(found.summary(), soft_wrap=True)
    for remark in found.remarks():
        console.print(f"- {remark}", soft_wrap=True)
    for title, paths in (*found.left_out.items(), ("of a single colour", found.constant)):
        most = None if options.all else SHOWN
        for path in paths[:most]:
            console.print(f"  {title}: {path}", soft_wrap=True)
        if most and len(paths) > most:
            console.print(f"  {title}: ... {len(paths)} in all; --all lists them", soft_wrap=True)
    if problems := found.problems():
        raise ConfigError(problems)
    if found.pixel_range:
        console.print("black and white: {:g} and {:g} (dataset.pixel_range)".format(*found.pixel_range))


def as_table(found: Inspection) -> Table:
    """Images by class and split."""
    table = Table("class")
    for split in found.counts:
        table.add_column(split, justify="right")
    for name in next(iter(found.counts.values()), {}):
        counts = [str(counts.get(name, 0)) for counts in found.counts.values()]
        table.add_row(name or "(no label)", *counts)
    return table
