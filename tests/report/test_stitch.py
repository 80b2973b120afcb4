"""Tables and plots of stitching: hypervolumes against pymoo, significance against closed testing, the rest by hand."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymoo.indicators.hv import HV
from scipy.stats import mannwhitneyu

from recombine.core.errors import ConfigError
from recombine.core.types import Row
from recombine.report.derived import derive
from recombine.report.formats import latex
from recombine.report.pivot import build
from recombine.report.significance import holm, not_worse
from recombine.report.spec import TableSpec, load_specs, pick
from recombine.stitch import plots as stitch

TABLES = Path(__file__).resolve().parents[2] / "config" / "table"
MEASURES = ("ece", "ece_scaled", "loss", "loss_scaled")
REFERENCES = [(80.0, 79.0, 100.0), (90.0, 88.0, 300.0), (91.0, 90.0, 400.0)]


def columns(prefix, points):
    """Columns of networks (search accuracy, test accuracy, cost); their calibration is a function of the cost."""
    search, test, cost = (list(map(float, column)) for column in zip(*points, strict=True))
    named = {"search_accuracy": search, "test_accuracy": test, "cost": cost, "temperature": [c / 1000 for c in cost]}
    named |= {f"test_{name}": [c + k for c in cost] for k, name in enumerate(MEASURES)}
    return {f"{prefix}_{name}": values for name, values in named.items()}


def row(points, search="nsga2", seed=0, status="ok", series=None, **cell):
    facts = {"a": "one", "b": "two", "dataset": "cifar10", "search": search, "method": "stitch"}
    facts |= {"performance": "accuracy", "population": 32, "budget": 100, "max_matches": "all"}
    facts |= {"granularity": "op", "bn_images": 0, **cell}
    known = columns("front", points) | columns("reference", REFERENCES) if status == "ok" else {}
    known |= {"front_on": [[0]] * len(points)} | (series or {}) if status == "ok" else {}
    metrics = {"requests": 100.0, "evaluations": 70.0 + seed, "answered": 30.0 - seed}
    return Row(facts, metrics, known, entry="stitch", seed=seed, run=f"{search}-{seed}-{cell}", status=status)


def hypervolume(points, everything):
    """By pymoo: points (accuracy, cost) on the axes of all of them."""
    flipped, everything = (np.array(p, float) * [-1, 1] for p in (points, everything))
    span = np.ptp(everything, axis=0)
    return HV(ref_point=everything.max(0) + 0.005 * span)(flipped) / np.prod(1.01 * span)


RUNS = {
    ("nsga2", 0): [(92, 89, 380), (90.5, 90.5, 200), (60, 60, 20)],
    ("nsga2", 1): [(93, 91, 350), (85, 82, 90)],
    ("random", 0): [(90, 88, 300), (80, 81, 95)],
}


@pytest.fixture
def rows():
    return [row(points, search, seed) for (search, seed), points in RUNS.items()]


@pytest.mark.parametrize("above", [0, 70, "parents"])
def test_hypervolumes_are_on_the_axes_of_all_runs(above):
    runs = RUNS | {("nsga2", 0): [(92, 89, 380), (90.5, 90.5, 200), (60, 75, 20)]}
    rows = [row(points, search, seed) for (search, seed), points in runs.items()]
    other = row([(99, 99, 1)], a="other")
    failed = row([], status="failed")
    found = derive([*rows, failed, other], {"function": "hypervolumes", "above": above})
    assert found[0] == failed and len(found) == 1 + 3 + 2 + 2, "references of two seeds here and of one elsewhere"
    kept = [[p for p in points if (p[0] >= 80 if above == "parents" else p[0] > above)] for points in runs.values()]
    for place, purpose in enumerate(("search", "test")):
        # of test accuracies, (82, 90) and others that are beaten take no part: they are inside of the axes here
        sides = [[(p[place], p[2]) for p in points] for points in (*kept, REFERENCES)]
        everything = [p for side in sides for p in side]
        for result, side in zip(found[1:4], sides, strict=False):
            assert result.metrics[f"normalized_hypervolume_{purpose}"] == pytest.approx(hypervolume(side, everything))
        for result in found[4:6]:
            assert result.cell["search"] == "references" and result.cell["population"] == "none"
            value = result.metrics[f"normalized_hypervolume_{purpose}"]
            assert value == pytest.approx(hypervolume(sides[3], everything))


def test_the_table_of_searches_has_quantiles_over_seeds():
    values = [88.0, 91.0, 93.0, 94.0, 97.0]
    rows = [row([(value, value, 200)], "nsga2", seed) for seed, value in enumerate(values)]
    rows += [row([(value - 7, value - 7, 200)], "random", seed) for seed, value in enumerate(values)]
    table = build(pick(load_specs(TABLES), "stitch/searches"), rows)
    everything = [(p[0], p[2]) for p in REFERENCES] + [(v - d, 200) for v in values for d in (0, 7)]
    volumes = {d: [hypervolume([(v - d, 200)], everything) for v in values] for d in (0, 7)}
    lines = {line[0]: line[2:5] for line in table.rows}
    for name, d, star in (("nsga2", 0, " ★"), ("random", 7, "")):
        low, median, high = np.quantile(volumes[d], [0, 0.5, 1])
        assert lines[name] == [f"{low:.4f}", f"{median:.4f}{star}", f"{high:.4f}"]
    assert "★" not in "".join(lines["references"]) and len(set(lines["references"])) == 1
    assert table.headers[1] == "seeds" and {line[1] for line in table.rows} == {"5"}
    assert "over seeds" in table.notes and sum("Mann-Whitney" in note for note in table.notes) == 1
    assert not any("warning" in note for note in table.notes)
    assert r"$\star$" in latex(table)
    assert table.frame.set_index("search")["search_median_star"].to_dict() == {
        "nsga2": True, "random": False, "references": False,
    }  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_the_closed_test_of_bonferroni(p_values):
    """A hypothesis falls at level alpha if every set of hypotheses with it has one with p <= alpha / size."""
    for one, corrected in enumerate(holm(p_values)):
        sets = [s for n in range(1, len(p_values) + 1) for s in combinations(range(len(p_values)), n) if one in s]
        assert corrected == pytest.approx(max(min(1, min(p_values[k] for k in s) * len(s)) for s in sets))


def test_what_is_not_worse_than_the_best():
    samples = {"best": [5, 6, 7, 8, 9], "close": [4, 5.5, 6.5, 7.5, 8.5], "far": [1, 2, 3, 3.5, 4.5], "same": [7] * 5}
    p_far = mannwhitneyu(samples["far"], samples["best"], alternative="less").pvalue
    assert 3 * p_far < 0.05 < mannwhitneyu(samples["close"], samples["best"], alternative="less").pvalue
    assert not_worse(samples) == {"best", "close", "same"}
    assert not_worse({"one": [3], "two": [1]}) == set() == not_worse({})
    assert not_worse({"one": [3, 3], "two": [3, 3]}) == {"one", "two"}
    lucky = {"steady": [5 + k / 10 for k in range(10)], "lucky": [1 + k / 10 for k in range(9)] + [1000]}
    assert not_worse(lucky) == {"steady"}, "the best is that of the median"
    # alone it would be worse (p = 1/20); among three, three seeds cannot show it
    assert not_worse({"one": [4, 5, 6], "two": [1, 2, 3]}) == {"one"}
    assert not_worse({"one": [4, 5, 6], "two": [1, 2, 3], "three": [1, 2, 3.5]}) == {"one", "two", "three"}


def test_parents_stand_once_beside_the_chosen_offspring_of_each_search(rows):
    table = build(pick(load_specs(TABLES), "stitch/calibration"), rows)
    lines = {line[0]: line[1:] for line in table.rows}
    assert list(lines) == ["A", "B", "ensemble", "offspring of nsga2", "offspring of random"]
    assert lines["A"][:2] == ["79.00 ± 0.00 (n = 2)", "100.00 ± 0.00 (n = 2)"]
    assert lines["offspring of random"][1:] == [
        "300.00 (n = 1)", "301.00 (n = 1)", "302.0000 (n = 1)", "303.0000 (n = 1)", "0.300 (n = 1)",
    ]  # fmt: skip
    assert lines["offspring of nsga2"][0].startswith("90.00 ± "), "89 and 91, each the best on the search's images"
    assert not any("warning" in note for note in table.notes)


def test_parents_on_a_front_count_for_nothing():
    """Rows of version 0.1 counted them: here A, which dominates the ensemble, and an offspring that dominates B."""
    points = [(91, 90, 100), (90.5, 88, 200)]
    old = row(points, series={"front_on": [[], [3]], "front_output": [0, 2]})
    old = replace(old, metrics={**old.metrics, "search_dominate_ensemble": 1.0, "chosen_accuracy": 90.0})
    (new,) = derive([old], {"function": "dominance"})
    assert new.metrics["search_dominate_ensemble"] == 0 and new.metrics["test_dominate_b"] == 1
    assert (new.metrics["front"], new.metrics["offspring"], new.metrics["chosen_accuracy"]) == (2, 1, 88)


def test_requests_are_medians(rows):
    table = build(pick(load_specs(TABLES), "stitch/requests"), rows)
    assert table.frame[["search", "evaluations"]].to_numpy().tolist() == [["nsga2", 70.5], ["random", 70.0]]
    assert table.frame["evaluations_low"].tolist() == [pytest.approx(70.2), 70.0] and "±" not in str(table.rows)


def test_populations_compete_too():
    rows = [
        row([(90 + seed + size / 1000, 90, 200)], "nsga2", seed, population=size)
        for seed in range(5)
        for size in (32, 64)
    ]
    table = build(pick(load_specs(TABLES), "stitch/populations"), rows)
    assert [line[:2] for line in table.rows] == [["nsga2", "32"], ["nsga2", "64"], ["references", "none"]]
    assert ["★" in line[3] for line in table.rows] == [True, True, False]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"derived": {"function": "volumes"}}, "`derived` needs a function; .*hypervolumes"),
        ({"derived": {"function": "networks", "above": 3}}, "networks takes no options, not above"),
        ({"metrics": {"front": {"quantile": 50}}}, r"quantile 50 is not in 0\.\.1"),
    ],
)
def test_a_wrong_specification_is_explained(change, message):
    node = {"title": "t", "entry": "stitch", "rows": ["search"], "metrics": {"front": None}, **change}
    with pytest.raises(ConfigError, match=message):
        TableSpec.parse("stitch/test", node)


def test_fronts_are_steps_of_what_nothing_beats(rows):
    figure = stitch.fronts(rows)
    left, right = figure.axes
    assert left.get_title() == "" or left.get_title(loc="left") == "one × two\nsearch images"
    line = left.lines[0]
    x, y = line.get_data()
    assert line.get_drawstyle() == "steps-pre"
    assert list(zip(x[1:], y[1:], strict=True)) == [(60, 20), (90.5, 200), (92, 380)] and y[0] == 20
    x, y = right.lines[0].get_data()
    assert list(zip(x[1:], y[1:], strict=True)) == [(60, 20), (90.5, 200)], "on test images 89 at 380 is beaten"
    crosses = left.collections[-1].get_offsets()
    assert crosses.tolist() == [[p[0], p[2]] for p in REFERENCES]
    area = left.collections[0].get_paths()[0]
    inside, outside = [(85, 90), (90.5, 299), (91.5, 390)], [(85, 110), (90.5, 301), (79, 1)]
    assert area.contains_points([*inside, *outside]).tolist() == [True] * 3 + [False] * 3
    assert left.get_xlim()[0] > 60, "what is far below both parents is not shown"


def curve(requests, stitches):
    return {"requests": requests, "stitches": stitches, "active_stitches": [s / 2 for s in stitches]}


def test_switches_are_means_over_the_runs_that_last():
    rows = [row(RUNS["random", 0], "random", 0, series=curve([10, 20, 30], [6.0, 4.0, 2.0]))]
    rows += [row(RUNS["random", 0], "random", 1, series=curve([20, 40], [2.0, 10.0]))]
    on, active, *_ = stitch.switches(rows).axes[0].lines
    assert on.get_xdata().tolist() == [10, 20, 30, 40]
    assert on.get_ydata().tolist() == [6, 3, (2 + 6) / 2, 10] and active.get_ydata()[0] == 3
    with pytest.raises(ConfigError, match="more than one batch"):
        stitch.switches([row(RUNS["random", 0], series=curve([10], [1.0]))])


def test_single_stitches_beside_who_receives():
    known = {"single_stitch_accuracy": list(map(float, range(8))), "pair_nodes": ["x | y", "z | w"]}
    figure = stitch.single_stitches([row(RUNS["random", 0], "single_stitch_sweep", series=known)])
    one, both = figure.axes
    data = {line.get_label(): list(line.get_ydata()) for line in one.lines if not line.get_label().startswith("_")}
    assert data == {"A takes B's features": [6, 7], "B takes A's": [4, 5]}
    data = {line.get_label(): list(line.get_ydata()) for line in both.lines if not line.get_label().startswith("_")}
    assert data == {"A takes B's features": [2, 3], "B takes A's": [0, 1]}
    names = {text.get_text(): text.xy[1] for axes in (one, both) for text in axes.texts}
    assert names == {"A": 80, "B": 90, "A + B": 91}
    assert [label.get_text() for label in one.get_xticklabels()] == ["x | y", "z | w"]


def test_errors_are_those_of_the_network_that_receives():
    known = {"stitch_errors": [0.1, 0.2, 0.3, 0.0], "pair_nodes": ["x | y", "z | w"]}
    (axes,) = stitch.stitch_errors([row(RUNS["random", 0], series=known)]).axes
    data = {line.get_label(): list(line.get_ydata()) for line in axes.lines if not line.get_label().startswith("_")}
    assert data == {"into A": [0.1, 0.3], "into B": [0.2, 1e-6]}


def test_what_differs_between_rows_is_told():
    rows = [row(RUNS["random", 0]), row(RUNS["random", 0], method="stitch_lstsq")]
    assert list(stitch.facets(rows)) == ["one × two, method stitch", "one × two, method stitch_lstsq"]
    known = {"stitch_errors": [0.1, 0.2, 0.3, 0.0], "pair_nodes": ["x | y", "z | w"]}
    kinds = [("op", 100), ("block", 100), ("op", 50)]
    rows = [row(RUNS["random", 0], series=known, granularity=kind, budget=budget) for kind, budget in kinds]
    assert len(stitch.stitch_errors(rows).axes) == 2, "errors depend on what is joined and not on the search"
    colours = stitch.searches_in([*rows, row(RUNS["random", 0], "my_own"), row(RUNS["random", 0], "random")])
    assert list(colours) == ["nsga2", "random", "my_own"] and len(set(colours.values())) == 3
