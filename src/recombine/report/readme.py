"""Marked blocks of a Markdown file, filled from rows: nobody types a number into a document.

    <!-- table:flips/pairs dataset=cifar10 -->
    <!-- end -->
    <!-- plot:flips/heat_map dataset=cifar10 -->
    <!-- end -->

A marker begins its line; whatever stands between it and its end is replaced.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from recombine.core.errors import ConfigError, did_you_mean
from recombine.core.files import write_atomically
from recombine.core.types import Row
from recombine.report.formats import markdown
from recombine.report.pivot import build
from recombine.report.registry import PLOTS, Plot
from recombine.report.rows import distinct, parts, together
from recombine.report.spec import TableSpec, matches, pick
from recombine.report.style import save

__all__ = ["fill", "write_pictures"]

BLOCK = re.compile(r"^(<!-- (table|plot):(\S+)((?: [\w.]+=\S+)*) -->\n)(.*?)^(<!-- end -->)", re.MULTILINE | re.DOTALL)
OPENING = re.compile(r"^<!-- (?:table|plot):", re.MULTILINE)


def fill(path: Path, rows: Sequence[Row], specs: Mapping[str, TableSpec], pictures: Path | None = None) -> int:
    """Fill all blocks of the Markdown file `path`, pictures into the folder `pictures`; returns how many.

    Raises:
        ConfigError: no block, a block without end, an unknown table or plot, rows lacking, or no folder for pictures.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: no Markdown can be read there ({error})") from error
    blocks = list(BLOCK.finditer(text))
    if not blocks or len(blocks) != len(OPENING.findall(text)):
        raise ConfigError(f"{path}: found {len(blocks)} whole blocks <!-- table:NAME key=value --> ... <!-- end -->")

    def filled(block: re.Match[str]) -> str:
        opening, kind, name, options, _, end = block.groups()
        where = dict(option.split("=", 1) for option in options.split())
        content = _table(name, where, rows, specs) if kind == "table" else _plot(name, where, rows, pictures, path)
        return f"{opening}\n{content}\n{end}"

    write_atomically(path, BLOCK.sub(filled, text))
    return len(blocks)


def write_pictures(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Every picture that the rows can be drawn as, by entry and setting; returns the files."""
    files = []
    for entry, pictures in PLOTS.items():
        found = parts(row for row in distinct(rows) if row.entry == entry and row.status == "ok")
        datasets = [dict(part).get("dataset") for part in found]
        for part in found:
            words = [value for key, value in part if key == "dataset" or datasets.count(dict(part).get("dataset")) > 1]
            for name, picture in pictures.items():
                try:
                    figure = picture.draw(together(found, part, picture.across))
                except ConfigError:  # these rows do not hold what the plot shows
                    continue
                files.append(save(figure, folder / _file(entry, name, *words)))
    return files


def _table(name: str, where: Mapping[str, str], rows: Sequence[Row], specs: Mapping[str, TableSpec]) -> str:
    table = build(pick(specs, name), rows, where)
    if not table.rows:
        raise ConfigError(f"no rows for the block table:{name} {_text(where)}".rstrip())
    return markdown(table)


def _plot(name: str, where: Mapping[str, str], rows: Sequence[Row], folder: Path | None, document: Path) -> str:
    picture = _picture(name)
    if folder is None:
        raise ConfigError(f"{document} has the block plot:{name}; say where its picture goes: --pictures docs/images")
    entry, plot = name.split("/")
    selected = [row for row in distinct(rows) if row.entry == entry and matches(row.cell, where)]
    try:
        figure = picture.draw(selected)
    except ConfigError as error:
        raise ConfigError([f"plot:{name} {_text(where)}: {problem}" for problem in error.problems]) from error
    file = save(figure, folder / _file(entry, plot, *where.values()))
    link = os.path.relpath(file, document.parent).replace(os.sep, "/")
    return f"![{picture.title} ({_text(where)})]({link})\n\n*{picture.caption}*\n"


def _picture(name: str) -> Plot:
    known = {f"{entry}/{plot}": picture for entry, plots in PLOTS.items() for plot, picture in plots.items()}
    if name not in known:
        raise ConfigError(f"unknown plot `{name}`; {did_you_mean(name, known)}")
    return known[name]


def _file(*words: str) -> str:
    return "-".join(words).replace("/", "-") + ".png"


def _text(where: Mapping[str, str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in where.items()) or "all rows"
