"""Tables of transfer: medians over students, gaps in bins, variants of methods, ways to use several teachers."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from recombine.core.types import Row
from recombine.report.aggregate import aggregate
from recombine.report.pivot import build
from recombine.report.spec import MetricColumn, TableSpec, load_specs, pick

TABLES = Path(__file__).resolve().parents[2] / "config" / "table"


def transfer_rows(deltas: dict[str, list[float]], seed=0, **cell) -> list[Row]:
    """A row for each student and teacher, with the metrics that success rates need."""
    where = {"dataset": "imagenet", "fraction": 0.1, "split": "test", "method": "kl_dp", **cell}
    return [
        Row(
            {"student": student, "teacher": f"t{place}", **where},
            {"transfer_delta": delta, "success": 100.0 * (delta > 0)},
            entry="transfer",
            seed=seed,
            run=f"{student}-{place}-{seed}-{where['method']}-{cell.get('variant')}",
        )
        for student, values in deltas.items()
        for place, delta in enumerate(values)
    ]


def test_success_is_the_median_over_students_with_and_without_diverged_ones():
    deltas = {"a": [1.0, 1.0, 1.0, 1.0], "b": [1.0, 1.0, 1.0, -1.0], "c": [-1.0, -1.0, -1.0, -80.0]}
    table = build(pick(load_specs(TABLES), "transfer/fig4a"), transfer_rows(deltas))
    (line,) = table.frame[table.frame["method"] == "kl_dp"].to_dict("records")
    assert line["success"] == 75.0, "the median of 100, 75 and 0; the mean over pairs is 58.3"
    assert line["success_kept"] == 87.5, "c has a mean delta of -20.75"
    assert line["transfer_delta"] == pytest.approx(np.mean([*deltas.values()]))
    assert "success: median over the means by student" in table.notes
    assert not any("warning" in note for note in table.notes)


def test_published_medians_are_those_of_the_published_leaderboard():
    specs = load_specs(TABLES)
    board = specs["transfer/leaderboard"]
    rows = [
        Row(
            {**board.where, "teacher": "any", **{key: cell[key] for key in board.keys}},
            {name: float(cell[name]) for name in ("success", "transfer_delta")},
            entry="transfer",
            run=f"{cell['student']}-{cell['method']}",
        )
        for cell in board.published
    ]
    frame = build(specs["transfer/fig4a"], rows).frame
    assert len(frame) == 7 and len(rows) == 140
    np.testing.assert_allclose(frame[["success_difference", "success_kept_difference"]], 0, atol=1e-9)


def test_a_median_has_its_spread_over_seeds():
    rows = transfer_rows({"a": [1.0], "b": [3.0], "c": [8.0]}) + transfer_rows({"a": [2.0], "b": [5.0], "c": [9.0]}, 1)
    column = {"middle": MetricColumn("middle", metric="transfer_delta", statistic="median", across=["student"])}
    mean, std, n = aggregate(rows, ["method"], column).loc["kl_dp", "middle"]
    assert (mean, n) == (4.0, 2) and std == pytest.approx(np.std([3.0, 5.0], ddof=1))


GAPS = {"-3": "-3 to -1", "-1": "-1 to 1", "0": "-1 to 1", "1": "1 to 3", "3": "3 to 15", "15": "3 to 15"}


def test_gaps_are_binned_from_their_lower_edge():
    rows = [
        replace(row, metrics={**row.metrics, "accuracy_gap": float(gap)}, cell={**row.cell, "teacher": gap})
        for gap in [*GAPS, "-15", "15.01"]
        for row in transfer_rows({"a": [float(gap) / 10]})
    ]
    table = build(pick(load_specs(TABLES), "transfer/gaps"), rows)
    assert [line[0] for line in table.rows] == ["-15 to -3", "-3 to -1", "-1 to 1", "1 to 3", "3 to 15"]
    for name, line in zip(dict.fromkeys(GAPS.values()), table.rows[1:], strict=True):
        deltas = [float(gap) / 10 for gap, found in GAPS.items() if found == name]
        spread = f"{np.std(deltas):.2f}" if len(deltas) > 1 else "n/a"
        assert line[1:3] == [f"{np.mean(deltas):+.2f}", spread] and line[-1] == str(len(deltas))
    assert "warning: 1 rows are left out because they lack accuracy_gap from -15 to 15" in table.notes


def test_variants_of_a_method_are_not_the_method():
    rows = transfer_rows({"a": [1.0]}) + transfer_rows({"a": [3.0]}, variant="paper")
    node = {"title": "Delta", "entry": "transfer", "rows": ["method"], "metrics": {"transfer_delta": None}}
    table = build(TableSpec.parse("transfer/test", node), rows + transfer_rows({"a": [1.0]}, 1, variant="standard"))
    assert [line[0] for line in table.rows] == ["kl_dp", "paper/kl_dp"]
    assert table.frame["transfer_delta"].tolist() == [1.0, 3.0] and not any("warning" in n for n in table.notes)


def test_teachers_in_turn_are_apart_by_order_and_beside_the_other_ways():
    ways = {"sequential": ("ascending", "descending"), "parallel": ("none",), "soup": ("none",)}
    ways |= {f"single {name}": ("none",) for name in ("mean", "min", "max")}
    cell = {"student": "s", "dataset": "mnist", "fraction": 1.0, "split": "test", "stage": "final", "teachers": "a+b"}
    rows = [
        Row(
            {**cell, "combine": way, "order": order},
            {"transfer_delta": float(k)},
            entry="multi_teacher",
            run=way + order,
        )
        for k, (way, order) in enumerate((way, order) for way, orders in ways.items() for order in orders)
    ]
    table = build(pick(load_specs(TABLES), "multi_teacher/combine"), rows, {"dataset": "mnist"})
    shown = dict(zip(table.headers, table.rows[0], strict=True))
    assert (shown["sequential ascending"], shown["sequential descending"]) == ("+0.00", "+1.00")
    assert {"parallel", "soup", "single mean", "single min", "single max"} < shown.keys()
    assert not any("warning" in note for note in table.notes)
    mixed = [*rows, replace(rows[0], cell={**rows[0].cell, "teachers": "a+c"}, run="other")]
    assert any(
        "teachers = a+b, a+c" in n for n in build(pick(load_specs(TABLES), "multi_teacher/combine"), mixed).notes
    )


@pytest.mark.parametrize("table", ["transfer/methods", "transfer/gaps"])
def test_rankings_are_no_method(table):
    rows = [replace(r, metrics={**r.metrics, "accuracy_gap": 2.0}) for r in transfer_rows({"a": [1.0]})]
    rank = Row(rows[0].cell | {"method": "rank"}, {"accuracy_gap": 2.0, "to_teacher": 9.0}, entry="transfer", run="r")
    assert build(pick(load_specs(TABLES), table), [*rows, rank]).rows == build(load_specs(TABLES)[table], rows).rows
