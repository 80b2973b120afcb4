"""What a person sees at the end of a run."""

from recombine.core.types import Row
from recombine.run.console import show_rows


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
