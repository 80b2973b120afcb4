"""What a person sees at the end of a run."""

import pytest
from rich.table import Table

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
