"""A table as Markdown, LaTeX (booktabs), CSV, or on the terminal."""

from __future__ import annotations

import re
from collections.abc import Callable

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


def terminal(table: Table) -> Group:
    """For a rich console: title, table, notes."""
    view = RichTable()
    for place, header in enumerate(table.headers):
        view.add_column(Text(header), justify="left" if place < table.keys else "right")
    for line in table.rows:
        view.add_row(*(Text(text, style="red" if text in BROKEN else "") for text in line))
    return Group(Text(table.title, style="bold"), view, *(Text(note, style="dim") for note in table.notes))


FORMATS: dict[str, Callable[[Table], str]] = {"markdown": markdown, "latex": latex, "csv": csv}


def render(table: Table, name: str) -> str:
    """The table in the format called `name`.

    Raises:
        ConfigError: there is no such format.
    """
    if name not in FORMATS:
        raise ConfigError(f"unknown format `{name}`; allowed are {', '.join(FORMATS)} (--format markdown)")
    return FORMATS[name](table)
