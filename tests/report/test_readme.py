"""Blocks of a Markdown file: filled, filled again to the same bytes, and mistakes explained."""

from dataclasses import replace
from pathlib import Path

import pytest

from recombine.core.errors import ConfigError
from recombine.report.readme import fill, write_pictures
from recombine.report.spec import load_specs

SPECS = load_specs(Path(__file__).resolve().parents[2] / "config" / "table")
TEXT = """# Title

Before.

<!-- table:flips/pairs dataset=digits student=forest -->
an old number 17.0
<!-- end -->

Between <!-- a remark -->.

<!-- plot:flips/gap_scatter dataset=digits -->
<!-- end -->
After.
"""


@pytest.fixture
def document(tmp_path):
    path = tmp_path / "README.md"
    path.write_text(TEXT, encoding="utf-8")
    return path


def test_filling_is_idempotent_and_touches_only_blocks(document, flip_rows):
    assert fill(document, flip_rows, SPECS, document.parent / "docs" / "images") == 2
    first = document.read_bytes()
    assert fill(document, flip_rows, SPECS, document.parent / "docs" / "images") == 2
    assert document.read_bytes() == first
    text = first.decode()
    assert text.startswith("# Title\n\nBefore.\n\n<!-- table:flips/pairs") and text.endswith("<!-- end -->\nAfter.\n")
    assert "17.0\n" not in text and "Between <!-- a remark -->." in text
    row = next(r for r in flip_rows if (r.cell["teacher"], r.cell["student"]) == ("tree_6", "forest"))
    assert f"| tree_6 | {row.metrics['rho_pos']:.2f} |" in text
    assert "(docs/images/flips-gap_scatter-digits.png)" in text
    assert (document.parent / "docs" / "images" / "flips-gap_scatter-digits.png").stat().st_size <= 200_000


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("<!-- end -->\nAfter", "After", "found 1 whole blocks"),
        ("flips/pairs", "flips/pears", "did you mean 'flips/pairs'"),
        ("gap_scatter", "gap_scater", "did you mean 'flips/gap_scatter'"),
        ("pairs dataset=digits", "pairs dataset=mnist", "no rows for the block table:flips/pairs dataset=mnist"),
        ("scatter dataset=digits", "scatter dataset=mnist", "gap_scatter dataset=mnist: none of 0 rows"),
    ],
)
def test_mistakes_leave_the_file_alone(document, flip_rows, old, new, message):
    wrong = TEXT.replace(old, new)
    document.write_text(wrong, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        fill(document, flip_rows, SPECS, document.parent)
    assert document.read_text(encoding="utf-8") == wrong


def test_plot_blocks_need_a_folder(document, flip_rows):
    with pytest.raises(ConfigError, match="--pictures docs/images"):
        fill(document, flip_rows, SPECS)


def test_pictures_are_small_and_never_mix_settings(document, flip_rows, pretrain_rows):
    val = [replace(row, cell={**row.cell, "split": "val"}, run="val") for row in flip_rows]
    with pytest.raises(ConfigError, match=r"plot:flips/gap_scatter dataset=digits: .* split = test, val .* add split="):
        fill(document, flip_rows + val, SPECS, document.parent)
    document.write_text(TEXT.replace("scatter dataset=digits", "scatter dataset=digits split=val"), encoding="utf-8")
    fill(document, flip_rows + val, SPECS, document.parent)
    assert (document.parent / "flips-gap_scatter-digits-val.png").exists()
    files = write_pictures([*flip_rows, *val, *pretrain_rows], document.parent)
    names = [file.name for file in files]
    assert {"flips-heat_map-digits-test.png", "flips-heat_map-digits-val.png"} < {*names} and len(names) == 11
    assert names[-1] == "pretrain-training_curves-digits.png"
    assert all(file.stat().st_size <= 200_000 for file in files)
