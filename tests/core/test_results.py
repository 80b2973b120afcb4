"""Rows on disk: whole, readable, and free of this machine's paths when published."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from recombine.core import results
from recombine.core.errors import RecombineError
from recombine.core.files import write_atomically
from recombine.core.results import publish, read_rows, write_rows
from recombine.core.types import Row

FACTS = {
    "command": "python main_flips.py data_root=/home/ann/set weights_root=/home/ann/set/w 'models=[a,/opt/nets/b.pt]'",
    "config": {"data_root": "/home/ann/set", "weights_root": "/home/ann/set/w", "cache_root": "cache", "lr": 0.1},
    "device": "AMD EPYC, 2 threads",
}
ROWS = [
    Row(
        {"teacher": name},
        {"rho_pos": 1 / 3, "bad": math.nan},
        {"histogram": [1, 2]},
        "flips",
        1,
        "run-s1",
        "run",
        provenance=FACTS,
    )
    for name in ("a", "b")
]


def test_rows_come_back_as_they_were(tmp_path):
    for rows in (ROWS, ROWS[:1]):
        write_rows(tmp_path, rows)
        assert str(read_rows(tmp_path)) == str(rows)
    mixed = [ROWS[0], replace(ROWS[1], seed=2, run="other", provenance={})]
    write_rows(tmp_path, mixed)
    assert str(read_rows(tmp_path / "row.json")) == str(mixed)


def test_what_rows_share_is_stored_once(tmp_path):
    assert write_rows(tmp_path, ROWS * 50).read_text().count("main_flips.py") == 1


def test_all_runs_below_a_folder_are_found_but_not_what_was_put_aside(tmp_path):
    root = tmp_path / "previous" / "here"  # a name like others
    for name in ("b", "a", "a/previous"):
        write_rows(root / "flips" / name, [replace(ROWS[0], run=name)])
    (root / "flips" / "a" / "tomorrow.json").write_text("{}")
    assert [row.run for row in read_rows(tmp_path)] == ["a", "b"]
    assert [row.run for row in read_rows([root / "flips" / "b", tmp_path])] == ["a", "b"]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "null",
        "{",
        "[]",
        "{}",
        '{"shared": {}, "rows": []}',
        '{"shared": {}, "rows": [{"cell": {}}]}',
        '{"shared": {"format": 3}, "rows": [{}]}',
    ],
)
def test_files_of_another_kind_or_version_are_named(tmp_path, content):
    (tmp_path / "row.json").write_text(content)
    with pytest.raises(RecombineError, match=r"row\.json"):
        read_rows(tmp_path)


def test_a_changed_number_and_a_folder_are_no_result(tmp_path):
    file = write_rows(tmp_path, [replace(ROWS[0], metrics={"accuracy": 12.5})])
    file.write_text(file.read_text().replace("12.5", "92.5"))
    with pytest.raises(RecombineError, match=r"row\.json is not a row file, or damaged .*repeat its run"):
        read_rows(tmp_path)
    file.unlink()
    file.mkdir()
    with pytest.raises(RecombineError, match=r"row\.json is not a row file"):
        read_rows(tmp_path)


def test_a_failing_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "row.json"
    write_atomically(path, "old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_published_rows_name_settings_and_no_places(tmp_path):
    failed = replace(
        ROWS[0], run="run-s2", status="failed", error="no /home/ann/set/x.png and no /root/y/z.pt; 1/2, a/b"
    )
    files = publish([*ROWS, failed], tmp_path)
    assert [file.name for file in files] == ["run-s1.row.json", "run-s2.row.json"]
    text = "".join(file.read_text() for file in files)
    assert "/home" not in text and "/opt" not in text and "/root" not in text
    row = read_rows(tmp_path)[0]
    assert row.provenance["command"] == (
        "python main_flips.py data_root=$DATA weights_root=$WEIGHTS 'models=[a,.../b.pt]'"
    )
    assert row.provenance["config"] == {
        "data_root": "$DATA",
        "weights_root": "$WEIGHTS",
        "cache_root": "cache",
        "lr": 0.1,
    }
    assert row.metrics["rho_pos"] == 1 / 3 and row.provenance["device"] == FACTS["device"]
    assert read_rows(tmp_path)[-1].error == "no $DATA/x.png and no .../z.pt; 1/2, a/b"


def test_relative_places_outside_the_project_are_named_by_their_setting(tmp_path):
    facts = {
        "command": "python main_flips.py data_root=../elsewhere/data",
        "config": {"data_root": "../elsewhere/data"},
    }
    (file,) = publish([replace(ROWS[0], provenance=facts)], tmp_path)
    assert (
        "elsewhere" not in file.read_text()
        and "data_root=$DATA" in json.loads(Path(file).read_text())["shared"]["provenance"]["command"]
    )


def test_rows_of_format_1_are_read_with_the_names_of_today(tmp_path):
    old = {"cell": {"method": "tune", "use_original": False}, "metrics": {"accuracy": 1.0}}
    shared = {"entry": "pnc", "seed": 0, "run": "r", "group": "g", "provenance": {}, "format": 1}
    (tmp_path / "row.json").write_text(json.dumps({"shared": shared, "rows": [old]}))
    (row,) = read_rows(tmp_path)
    assert row.cell == {"method": "finetune", "use_target_data": False} and row.format == 2


def test_many_rows_are_columns_and_come_back_the_same(tmp_path, monkeypatch):
    """Rows may lack what others have; nothing but the shared part is JSON."""
    monkeypatch.setattr(results, "MOST_AS_JSON", 3)
    many = [
        Row({"teacher": f"t{k}", "baseline": "none"}, {"rho_pos": k / 3, **({"entropy": 0.5} if k % 2 else {})})
        for k in range(5)
    ]
    many = [replace(row, entry="flips", run="r", group="g", provenance=FACTS) for row in many]
    many[0] = replace(many[0], series={"most": ["cat", "dog"]})
    file = write_rows(tmp_path, many)
    assert read_rows(tmp_path) == many and file.stat().st_size < 1000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["row.json", "rows.parquet"]
    whole = (tmp_path / "rows.parquet").read_bytes()
    for k in (len(whole) // 3, len(whole) // 2):
        changed = bytearray(whole)
        changed[k] ^= 4
        (tmp_path / "rows.parquet").write_bytes(changed)
        with pytest.raises(RecombineError, match="its content is not what was written"):
            read_rows(tmp_path)
    (tmp_path / "rows.parquet").write_bytes(b"no columns")
    with pytest.raises(RecombineError, match="not a row file"):
        read_rows(tmp_path)
