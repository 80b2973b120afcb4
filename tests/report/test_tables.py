"""Averages, published values, failures and missing cells, against NumPy and by hand."""

from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest

from recombine.core.errors import ConfigError
from recombine.core.results import write_rows
from recombine.core.types import Row
from recombine.report.aggregate import aggregate
from recombine.report.pivot import build, gather
from recombine.report.rows import distinct
from recombine.report.spec import MetricColumn, TableSpec, load_specs, pick

TABLES = Path(__file__).resolve().parents[2] / "config" / "table"
NODE = {
    "title": "Accuracy",
    "entry": "pretrain",
    "rows": ["model"],
    "metrics": {"accuracy": {"label": "top-1", "unit": "%"}},
    "command": "python main_pretrain.py model={model} seed={seed}",
}


def spec(**changes) -> TableSpec:
    return TableSpec.parse("pretrain/test", {**NODE, **changes})


def row(model="a", accuracy=90.0, seed=0, **changes) -> Row:
    cell = {"model": model, **changes.pop("cell", {})}
    run = changes.pop("run", f"{model}-{seed}")
    return Row(cell, {"accuracy": accuracy}, entry="pretrain", seed=seed, run=run, **changes)


def test_mean_and_sample_deviation_over_seeds(pretrain_rows):
    table = aggregate([r for r in pretrain_rows if r.status == "ok"], ["model"], {"accuracy": MetricColumn("top-1")})
    values = [r.metrics["accuracy"] for r in pretrain_rows if r.cell.get("model") == "mlp_32"]
    mean, std, n = table.loc["mlp_32", "accuracy"]
    assert len(values) == n == 3
    np.testing.assert_allclose([mean, std], [np.mean(values), np.std(values, ddof=1)])
    assert std > 0


def test_deviation_is_over_seeds_even_where_other_keys_are_averaged():
    rows = [row("a", value, seed, cell={"student": student}) for seed, student, value in
            [(0, "x", 80.0), (0, "y", 90.0), (1, "x", 82.0), (1, "y", 92.0)]]  # fmt: skip
    mean, std, n = aggregate(rows, ["model"], {"accuracy": MetricColumn("top-1")}).loc["a", "accuracy"]
    assert (mean, n) == (86.0, 2)
    assert std == pytest.approx(np.std([85.0, 87.0], ddof=1))


def test_matrix_shows_every_pair_where_it_belongs(flip_rows):
    table = build(pick(load_specs(TABLES), "flips/matrix"), flip_rows)
    assert table.headers[0] == "teacher" and table.keys == 1
    shown = {
        (line[0], student): text
        for line in table.rows
        for student, text in zip(table.headers[1:], line[1:], strict=True)
    }
    for r in flip_rows:
        assert shown[r.cell["teacher"], r.cell["student"]] == f"{r.metrics['rho_pos']:.2f}"
    assert all(shown[name, name] == "·" for name in table.headers[1:])
    assert not table.missing


def test_names_are_sorted_as_people_count():
    table = build(spec(), [row(name) for name in ("net100", "net20", "net3")])
    assert [line[0] for line in table.rows] == ["net3", "net20", "net100"]


def test_a_pair_that_lacks_is_listed_with_its_command(flip_rows):
    gone = flip_rows[5].cell
    table = build(pick(load_specs(TABLES), "flips/matrix"), [r for r in flip_rows if r.cell != gone])
    assert [m.cell["teacher"] for m in table.missing] == [gone["teacher"]]
    command = "python main_flips.py dataset=digits split=test 'models=[{teacher},{student}]'"
    assert table.missing[0].command == command.format(**gone)
    assert sum(line.count("missing") for line in table.rows) == 1


def test_published_ours_difference():
    paper = [{"model": "a", "accuracy": 91.25}, {"model": "c", "accuracy": 70}]
    table = build(spec(published=paper, source="a paper"), [row("a", 90.0), row("b", 80.0)])
    assert table.headers == ["model", "top-1 (%) published", "top-1 (%) ours", "difference"]
    assert table.rows == [["a", "91.25", "90.00", "-1.25"], ["b", "", "80.00", ""], ["c", "70.00", "missing", ""]]
    assert table.frame["accuracy_difference"].iloc[0] == -1.25
    assert [m.command for m in table.missing] == ["python main_pretrain.py model=c seed=0"]
    assert any("a paper" in note for note in table.notes)


def test_claims_of_the_rows_stand_where_the_table_has_no_published_value():
    metrics = {"accuracy": {"label": "top-1", "claimed": "claimed_accuracy"}}
    known = replace(row("a", 90.0), metrics={"accuracy": 90.0, "claimed_accuracy": 90.5})
    table = build(spec(metrics=metrics), [known, row("b", 80.0)])
    assert table.rows == [["a", "90.50", "90.00", "-0.50"], ["b", "", "80.00", ""]]


def test_failed_cells_are_seen_with_their_error(pretrain_rows):
    alone = Row({"model": "broken"}, entry="pretrain", run="broken-0", status="failed", error="KeyError: 'x'\ntrace")
    table = build(spec(average_over=["dataset"]), [*pretrain_rows, alone])
    lines = {line[0]: line[1] for line in table.rows}
    assert lines["broken"] == "failed"
    assert lines["linear"].endswith("†") and not lines["mlp_32"].endswith("†")
    notes = "\n".join(table.notes)
    assert "diverged: model=linear" in notes and "loss is not finite between steps 50 and 100" in notes
    assert "failed: dataset=digits, seed=0, run odd-0: ValueError: no model" in notes
    assert "KeyError: 'x'" in notes and "trace" not in notes
    reasons = {(m.cell.get("model"), m.seed): (m.reason, m.command) for m in table.missing}
    assert reasons["broken", 0] == ("failed", "python main_pretrain.py model=broken seed=0")
    assert reasons["linear", 3][0] == "diverged"
    assert reasons[None, 0] == ("failed", "python main_flips.py dataset=digits")


def test_what_diverged_counts_for_nothing_though_it_was_measured():
    found = aggregate(
        [row("a", 90), row("a", 10, 1, status="diverged")], ["model"], {"accuracy": MetricColumn("top-1")}
    )
    assert found["accuracy"].loc["a", ["mean", "n"]].tolist() == [90, 1]


def test_missing_seeds_are_listed_one_by_one():
    table = build(spec(seeds=[0, 1, 2], expected=[{"model": ["a", "b"]}]), [row("a", seed=0), row("a", seed=2)])
    missing = [(m.cell["model"], m.seed) for m in table.missing]
    assert missing == [("a", 1), ("b", 0), ("b", 1), ("b", 2)]
    assert table.missing[0].command == "python main_pretrain.py model=a seed=1"


def test_different_numbers_of_seeds_are_shown():
    table = build(spec(), [row("a", 90, 0), row("a", 92, 1), row("b", 80)])
    assert [line[1] for line in table.rows] == ["91.00 ± 1.41 (n = 2)", "80.00 (n = 1)"]
    once = build(spec(runs="seeds"), [row("a", 90, 0), row("a", 92, 1), row("b", 80)])
    assert once.headers[1] == "seeds" and once.rows == [["a", "2", "91.00 ± 1.41"], ["b", "1", "80.00"]]
    assert not any("n =" in note or "n stands" in note for note in once.notes)


def test_what_is_not_one_measurement_is_not_averaged_unless_asked():
    two = [row("a", 90, cell={"epochs": 10}), row("a", 80, cell={"epochs": 20})]
    table = build(spec(), two)
    assert table.rows[0][-1] == "mixed" and any("rows of different epochs = 10, 20" in note for note in table.notes)
    asked = build(spec(average_over=["epochs"]), two)
    assert asked.rows[0][-1] == "85.00" and not any("different" in note for note in asked.notes)
    assert build(spec(), two, {"epochs": "10"}).rows[0][-1] == "90.00"


def facts(lr=0.1, digest="1234", method="old.place.Delta", **config):
    config = {"optimizer": {"lr": lr}, "method": {"_target_": method}, "data_root": "x", **config}
    return {"config": config, "inputs": {"data mine/test": digest}}


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (facts(lr=0.2), "different optimizer.lr = 0.1, 0.2"),
        (facts(digest="5678"), "different data mine/test = 1234, 5678"),
        (facts(method="old.place.LoRA"), "different method._target_ = Delta, LoRA"),
        (facts(data_root="y", models=["a"], method="new.place.Delta"), "different runs a-0, a-1"),
    ],
)
def test_settings_and_data_of_a_cell_are_one(other, told):
    for seed in (0, 1):
        rows = [row("a", 90, 0, provenance=facts()), row("a", 80, seed, run="a-1", provenance=other)]
        table = build(spec(), rows)
        same = seed == 1 and "runs" in told  # where only the seed differs, the mean is one over seeds
        assert (table.rows[0][-1] == "85.00 ± 7.07") == same != (table.rows[0][-1] == "mixed")
        assert same != any(told in note for note in table.notes)
    twice = [row("a", 90, 0, provenance=facts()), row("a", 90, 0, run="a-1", provenance=facts())]
    assert build(spec(), twice).rows[0][-1] == "90.00"


def test_trials_are_left_out_and_counted():
    trial = row("a", 10, run="trial", provenance={"config": {"engine": {"max_eval_batches": 2}}})
    table = build(spec(), [row("a", 90), trial])
    assert table.rows[0][-1] == "90.00" and any("1 rows are left out: a part" in note for note in table.notes)


def test_rows_without_a_key_of_the_table_are_counted():
    table = build(spec(rows=["model", "dataset"]), [row("a"), row("b", cell={"dataset": "mnist"})])
    assert len(table.rows) == 1
    assert "warning: 1 rows are left out because they lack dataset" in table.notes


def test_where_knows_which_keys_there_are(flip_rows):
    with pytest.raises(ConfigError, match=r"--where datset=\.\.\.: rows have no datset; did you mean 'dataset'"):
        build(pick(load_specs(TABLES), "flips/pairs"), flip_rows, {"datset": "digits"})


def test_where_keeps_only_matching_cells(flip_rows):
    table = build(pick(load_specs(TABLES), "flips/matrix"), flip_rows, {"student": "forest"})
    assert table.headers == ["teacher", "forest"]
    assert len(table.rows) == len({r.cell["teacher"] for r in flip_rows}) - 1


def test_a_run_found_twice_counts_once_as_the_first_root_has_it(tmp_path):
    write_rows(tmp_path / "outputs" / "a-0", [row("a", 91.0)])
    write_rows(tmp_path / "results" / "a-0", [row("a", 90.0)])
    write_rows(tmp_path / "results" / "b-0", [row("b", 80.0)])
    rows = gather([str(tmp_path / "results"), str(tmp_path / "outputs")])
    assert [(r.cell["model"], r.metrics["accuracy"]) for r in rows] == [("a", 90.0), ("b", 80.0)]
    assert distinct(rows + rows) == rows
    with pytest.raises(ConfigError, match="no rows below"):
        gather([str(tmp_path / "elsewhere")])


def test_means_are_over_the_rows_that_have_the_metric():
    rows = [replace(row("a", 90.0, 0), metrics={"accuracy": 90.0, "rate": 10.0}), row("a", 80.0, 1)]
    table = build(spec(metrics={"accuracy": None, "rate": None}), [*rows, row("b")])
    assert [line[1:] for line in table.rows] == [["85.00 ± 7.07 (n = 2)", "10.00 (n = 1)"], ["90.00 (n = 1)", "n/a"]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colums": "model"}, "unknown key `colums`; did you mean 'columns'"),
        ({"rows": []}, "`rows` is missing"),
        ({"metrics": {"accuracy": {"format": "xyz"}}}, "metric `accuracy` takes label"),
        (
            {"metrics": {"accuracy": {"statistic": "mode", "across": ["seed"]}}},
            "mode is none of mean",
        ),
        ({"metrics": {"accuracy": {"statistic": "median"}}}, "statistic median needs `across`"),
        ({"bins": {"accuracy": [0, 1]}, "rows": ["accuracy"]}, "not its metrics too, unlike accuracy"),
        ({"published": [{"modle": "a", "accuracy": 1}]}, "keys the table has not: modle"),
    ],
)
def test_a_wrong_specification_is_explained(change, message):
    with pytest.raises(ConfigError, match=message):
        spec(**change)


def test_shipped_tables_have_commands_for_their_own_keys():
    specs = load_specs(TABLES)
    assert {"flips/matrix", "flips/pairs", "flips/accuracies", "pretrain/accuracies"} <= specs.keys()
    for name, table in specs.items():
        assert name.startswith(f"{table.entry}/")
        assert "{" not in table.command.format(**dict.fromkeys(table.keys, "x"), seed=0)
    with pytest.raises(ConfigError, match="did you mean 'flips/pairs'"):
        pick(specs, "flips/pair")


def test_pair_table_keeps_the_identity_of_flips(flip_rows):
    frame = build(pick(load_specs(TABLES), "flips/pairs"), flip_rows).frame
    assert len(frame) == len(list(permutations({r.cell["teacher"] for r in flip_rows}, 2)))
    np.testing.assert_allclose(frame["rho_pos"] - frame["rho_neg"], frame["accuracy_gap"], atol=1e-9)
