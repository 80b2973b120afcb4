"""What is written can be read again, by pandas, by a Markdown reader's rules, by TeX's."""

import io
import re
import runpy
import shlex
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from recombine.core.errors import ConfigError
from recombine.core.results import write_rows
from recombine.core.types import Row
from recombine.report.formats import latex_escape, render, terminal
from recombine.report.pivot import Table, build
from recombine.report.spec import load_specs, pick

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def awkward():
    return Table(
        "50 % of a_b & c", ["net", "top-1 (%)"], [["a|b_*c*\\{$}~^#<i>", "-1.50 ± 0.20 †"]], 1, ["ρ_pos is 5 %"]
    )


def test_markdown_cells_cannot_break_out(awkward):
    lines = render(awkward, "markdown").splitlines()
    assert lines[2:4] == ["| net | top-1 (%) |", "| --- | ---: |"]
    cells = re.split(r"(?<!\\)\|", lines[4])
    assert len(cells) == 4
    assert re.sub(r"\\(.)", r"\1", cells[1].strip()).replace("&lt;", "<") == awkward.rows[0][0]


def test_markdown_leaves_names_readable():
    table = Table("t", ["a"], [["resnet20_optB_distiller"]], 1)
    assert "| resnet20_optB_distiller |" in render(table, "markdown")


def test_latex_escapes_every_special_sign():
    assert latex_escape("5 % of a_b & #1 ${x}^~\\") == (
        r"5 \% of a\_b \& \#1 \$\{x\}\textasciicircum{}\textasciitilde{}\textbackslash{}"
    )


def test_latex_table_is_balanced_and_whole(awkward):
    text = render(awkward, "latex")
    bare = text.replace(r"\{", "").replace(r"\}", "")
    assert bare.count("{") == bare.count("}")
    assert re.findall(r"\\(toprule|midrule|bottomrule)", text) == ["toprule", "midrule", "bottomrule"]
    line = next(line for line in text.splitlines() if line.startswith("a\\textbar"))
    assert len(re.split(r"(?<!\\)&", line)) == 2
    assert r"$-$1.50 $\pm$ 0.20 \dag{}" in line
    assert text.isascii()


def test_csv_holds_full_precision(flip_rows):
    table = build(pick(load_specs(ROOT / "config" / "table"), "flips/pairs"), flip_rows)
    frame = pd.read_csv(io.StringIO(render(table, "csv")))
    found = frame.set_index(["teacher", "student"])["rho_pos"]
    for row in flip_rows:
        np.testing.assert_allclose(found[row.cell["teacher"], row.cell["student"]], row.metrics["rho_pos"], rtol=1e-14)


def test_terminal_prints_names_literally(awkward):
    console = Console(file=io.StringIO(), width=200)
    awkward.rows[0][0] = "[red]not a colour[/red]"
    console.print(terminal(awkward))
    assert "[red]not a colour[/red]" in console.file.getvalue()


def test_a_table_that_is_wider_than_the_terminal_goes_on_below_and_cuts_no_name():
    rows = [[f"timm:resnet{k}.a1_in1k", "delta", *(f"{10 * k + c}.25" for c in range(6))] for k in (18, 34)]
    headers = ["model", "method"]
    for task in ("cars", "birds"):
        headers += [f"{task} published", f"{task} ours", "difference"]
    for width in (200, 80, 40):
        console = Console(file=io.StringIO(), width=width)
        console.print(terminal(Table("t", headers, rows, 2), width))
        text = console.file.getvalue()
        tables = text.count("┏")
        assert tables == {200: 1, 80: 2, 40: 2}[width] and max(map(len, text.splitlines())) <= width
        if width > 40:  # below, names wrap
            assert all(text.count(row[0]) == tables for row in rows)
            assert all(sum(value in line for value in row[2:5]) in (0, 3) for row in rows for line in text.splitlines())
        assert "…" not in text and all(text.count(value) == 1 for row in rows for value in row[2:])


def test_unknown_format_is_explained(awkward):
    with pytest.raises(ConfigError, match="allowed are markdown, latex, csv"):
        render(awkward, "docx")


@pytest.fixture
def script(monkeypatch):
    """Runs a script in this process and returns its exit code."""

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        monkeypatch.setattr(sys, "path", list(sys.path))
        try:
            runpy.run_path(str(ROOT / "scripts" / name), run_name="__main__")
        except SystemExit as stop:
            return stop.code
        return 0

    return run


def test_table_script(tmp_path, script, capsys):
    cell = {"model": "cnn", "dataset": "mnist", "fraction": 1.0, "start": "random", "trained": "all"}
    rows = [Row(cell, {"accuracy": 99.0}, entry="pretrain", run="cnn-0")]
    write_rows(tmp_path / "rows" / "cnn-0", rows)
    out = tmp_path / "new" / "table.md"
    assert script("table.py", "pretrain/accuracies", "--rows", tmp_path / "rows", "--out", out) == 0
    assert "| 99.00 |" in out.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["flips/matrx"], "did you mean 'flips/matrix'"),
        (["flips/matrix", "--rows", "no_such_folder"], "no rows below no_such_folder"),
        (["flips/matrix", "--where", "dataset"], "KEY=VALUE"),
    ],
)
def test_table_script_explains_mistakes(arguments, message, script, capsys):
    assert script("table.py", *arguments) == 2
    assert message in capsys.readouterr().err


def test_missing_cells_are_printed_as_shell_commands(tmp_path, flip_rows, script, capsys):
    write_rows(tmp_path / "flips", flip_rows[1:])
    assert script("table.py", "flips/matrix", "--rows", tmp_path, "--missing") == 0
    gone = flip_rows[0].cell
    (line,) = capsys.readouterr().out.splitlines()
    words = shlex.split(line, comments=True)
    assert words[1:] == [
        "main_flips.py", "dataset=digits", "split=test", f"models=[{gone['teacher']},{gone['student']}]"
    ]  # fmt: skip


def test_list_names_every_table(script, capsys):
    assert script("table.py", "--list") == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(load_specs(ROOT / "config/table"))


def test_report_script_writes_the_page(tmp_path, flip_rows, script):
    write_rows(tmp_path / "flips", flip_rows)
    out = tmp_path / "report.html"
    assert script("report.py", "--rows", tmp_path, "--out", out, "--title", "A < B") == 0
    assert "<title>A &lt; B</title>" in out.read_text()
