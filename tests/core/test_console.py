"""What a person sees at the end of a run, and of runs side by side."""

import logging
import sys

import pytest
from rich.table import Table

from recombine.cli.job_output import named_lines
from recombine.core.types import Row
from recombine.run.console import show, show_problems, show_rows


def test_an_absent_metric_is_blank_unless_its_row_failed(capsys, tmp_path):
    rows = [
        Row(cell={"part": "a"}, metrics={"accuracy": 91.25, "similarity": 0.5}),
        Row(cell={"part": "b"}, metrics={"accuracy": 82.5}),
        Row(cell={"part": "c"}, status="diverged"),
    ]
    show_rows(rows, tmp_path)
    lines = {line.split("│")[1].strip(): line for line in capsys.readouterr().out.splitlines() if "│" in line}
    assert "91.25" in lines["a"] and "0.50" in lines["a"]
    assert "82.50" in lines["b"] and "ok" not in lines["b"]
    assert lines["c"].count("diverged") == 2


@pytest.mark.parametrize("name", ["[red]a[/red]", "photo[a].png", "q[/b]", ":dog:", r"a\[b]"])
def test_names_are_shown_as_they_are(capsys, tmp_path, name):
    """rich would take brackets for styles and colons for pictures, and fail at a bracket that closes nothing."""
    show_rows([Row(cell={"part": name, "all": name}), Row(cell={"part": "b", "all": name})], tmp_path / name)
    show_problems([f"{name} is wrong"])
    table = Table("image", title=name)
    table.add_row(name)
    show(table)
    told = capsys.readouterr()
    assert told.out.count(name) == 5 and f"- {name} is wrong" in told.err


def test_the_headline_is_printed_with_its_intervals_and_the_rest_counted(capsys, tmp_path):
    metrics = {"cost": 12.0, "gain": 1.5, "gain_low": 0.25, "gain_high": 2.75, "parameters": 1234567.0}
    row = Row(cell={}, metrics=metrics, provenance={"files": ["outputs/run/student.safetensors"]})
    show_rows([row], tmp_path, headline=("gain", "absent", "parameters"))
    told = capsys.readouterr().out
    assert [line.split("│")[1:3] for line in told.splitlines() if "│" in line] == [
        [" gain       ", " 1.50 [0.25, 2.75] "],
        [" parameters ", "         1,234,567 "],
    ]
    assert "and 3 more metrics in" in told and "file     outputs/run/student.safetensors" in told


def test_every_line_of_a_job_says_whose_it_is(capsys):
    handler = logging.StreamHandler(sys.stdout)
    logging.root.addHandler(handler)
    before = sys.stdout
    try:
        with named_lines("[job 3] "):
            assert not sys.stdout.isatty()
            print("one\ntwo")
            print("three", end=" ")
            print("four", file=sys.stderr)
            logging.root.error("five")
            print("six", end="")
        print("seven")
        logging.root.error("eight")
    finally:
        logging.root.removeHandler(handler)
    assert sys.stdout is before
    seen = capsys.readouterr()
    assert seen.err == "[job 3] four\n"
    lines = ["[job 3] one", "[job 3] two", "[job 3] three five", "[job 3] six", "seven", "eight"]
    assert seen.out.splitlines() == lines
