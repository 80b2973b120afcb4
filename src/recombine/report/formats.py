"""A table as Markdown, LaTeX (booktabs), CSV, or on the terminal."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from textwrap import fill
from typing import Any

from rich.cells import cell_len
from rich.console import Group
from rich.table import Table as RichTable
from rich.text import Text

from recombine.core.errors import ConfigError
from recombine.report.pivot import BROKEN, Table

__all__ = ["FORMATS", "csv", "latex", "latex_escape", "markdown", "render", "terminal"]

LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "%": r"\%",
    "#": r"\#",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "·": r"$\cdot$",
    "ρ": r"$\rho$",
    "†": r"\dag{}",
    "★": r"$\star$",
    "→": r"$\rightarrow$",
    "–": "--",
}


def markdown(table: Table) -> str:
    """GitHub's table dialect, values right-aligned, title above and notes below."""
    clean = [[_markdown_cell(text) for text in line] for line in [table.headers, *table.rows]]
    rule = ["---" if place < table.keys else "---:" for place in range(len(table.headers))]
    body = ["| " + " | ".join(line) + " |" for line in [clean[0], rule, *clean[1:]]]
    notes = ["", *(f"- {_markdown_cell(note)}" for note in table.notes)] if table.notes else []
    return "\n".join([f"**{_markdown_cell(table.title)}**", "", *body, *notes]) + "\n"


def _markdown_cell(text: str) -> str:
    """A pipe or line break would end the cell, `<` would begin HTML; underscores inside words are harmless."""
    text = re.sub(r"([\\`*|\[\]]|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", text)
    return text.replace("<", "&lt;").replace("\n", " ")


def latex_escape(text: str) -> str:
    """Text as LaTeX typesets it literally; the signs this project prints become mathematics."""
    return "".join(LATEX.get(sign, sign) for sign in text)


def latex(table: Table) -> str:
    """A booktabs table with caption; needs `\\usepackage{booktabs}` and UTF-8 input."""
    columns = "l" * table.keys + "r" * (len(table.headers) - table.keys)
    lines = [" & ".join(_latex_cell(text) for text in line) + r" \\" for line in table.rows]
    notes = [rf"\par\smallskip{{\footnotesize {latex_escape(note)}}}" for note in table.notes]
    return (
        "\n".join(
            [
                r"\begin{table}",
                r"\centering",
                rf"\caption{{{latex_escape(table.title)}}}",
                rf"\begin{{tabular}}{{{columns}}}",
                r"\toprule",
                " & ".join(latex_escape(text) for text in table.headers) + r" \\",
                r"\midrule",
                *lines,
                r"\bottomrule",
                r"\end{tabular}",
                *notes,
                r"\end{table}",
            ]
        )
        + "\n"
    )


def _latex_cell(text: str) -> str:
    """A value's minus sign is typeset as mathematics, the hyphens of names are left alone."""
    sign = "$-$" if text[:1] == "-" and text[1:2].isdigit() else ""
    return sign + latex_escape(text[1:] if sign else text)


def csv(table: Table) -> str:
    """One row a cell in full precision: keys, then mean, std, n, published, difference by metric, then status."""
    return table.frame.to_csv(index=False, lineterminator="\n")


def terminal(table: Table, width: int = 200) -> Group:
    """For a rich console of this width: title, table, notes.

    Where it is too narrow, headers wrap; columns that still do not fit go into another table below, with the keys
    again: cut names could not be told apart.
    """
    headers = table.headers
    cells = [max((cell_len(line[place]) for line in table.rows), default=0) for place in range(len(headers))]
    if sum(max(cell_len(head), cell) + 3 for head, cell in zip(headers, cells, strict=True)) >= width:
        words = [max(map(cell_len, head.split()), default=0) for head in headers]
        headers = [fill(head, max(room)) for head, *room in zip(headers, words, cells, strict=True)]
    lines = [max(cell, *map(cell_len, head.split("\n"))) for head, cell in zip(headers, cells, strict=True)]
    parts = _parts(table, [line + 3 for line in lines], width)  # a border and two blanks each
    views = [_view(table, headers, [*range(table.keys), *part]) for part in parts or [[]]]
    return Group(Text(table.title, style="bold"), *views, *(Text(note, style="dim") for note in table.notes))


def _view(table: Table, headers: Sequence[str], columns: Sequence[int]) -> RichTable:
    view = RichTable()
    for place in columns:
        justify: Any = "left" if place < table.keys else "right"
        view.add_column(Text(headers[place]), justify=justify, overflow="fold", no_wrap=place >= table.keys)
    for line in table.rows:
        view.add_row(*(Text(line[place], style="red" if line[place] in BROKEN else "") for place in columns))
    return view


def _parts(table: Table, widths: Sequence[int], width: int) -> list[list[int]]:
    """The value columns, as many side by side as fit; what is published, ours and their difference stay together."""
    groups: list[list[int]] = []
    for place in range(table.keys, len(table.headers)):
        with_last = table.headers[place] == "difference" or table.headers[place - 1].endswith(" published")
        groups = [*groups[:-1], [*groups[-1], place]] if groups and with_last else [*groups, [place]]
    room = width - sum(widths[: table.keys]) - 1
    parts: list[list[int]] = []
    for group in groups:
        if parts and sum(widths[place] for place in parts[-1] + group) <= room:
            parts[-1] += group
        else:
            parts.append(group)
    return parts


FORMATS: dict[str, Callable[[Table], str]] = {"markdown": markdown, "latex": latex, "csv": csv}


def render(table: Table, name: str) -> str:
    """The table in the format called `name`.

    Raises:
        ConfigError: there is no such format.
    """
    if name not in FORMATS:
        raise ConfigError(f"unknown format `{name}`; allowed are {', '.join(FORMATS)} (--format markdown)")
    return FORMATS[name](table)
