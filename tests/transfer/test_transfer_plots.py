"""Plots and their numbers, from rows made up with known answers."""

from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest

from recombine.core.errors import ConfigError
from recombine.core.types import Row
from recombine.transfer import plots
from recombine.transfer import rate_plots as rates
from recombine.transfer.plot_frames import mean_frame

LABELS = ("t0", "t1", "t2")


def make_rows(students=4, teachers=10, methods=("kl", "kl_dp")):
    random = np.random.default_rng(0)
    rows = []
    for seed in (0, 1):
        for s in range(students):
            for t in range(teachers):
                for m, method in enumerate(methods):
                    gap = t - 4.5 - s
                    metrics = {"accuracy_gap": gap, "transfer_delta": 0.3 * gap * (1 - m) + m + 0.1 * random.normal()}
                    metrics |= {"success": 100.0 * (metrics["transfer_delta"] > 0)}
                    metrics |= {f"top{x}_improve": 50.0 for x in rates.TOP_PERCENTAGES}
                    metrics |= {"knowledge_gain": 1.0 + t, "positive_flips_after": 2.0}
                    metrics |= {"transfer_rate_strict": 20.0 + t, "positive_flips_before": 5 + gap}
                    metrics |= {"transfer_rate_after": 30.0, "parameters": 1e6 * (s + 1)}
                    cell = {"student": f"s{s}", "teacher": f"t{t}", "method": method, "dataset": "digits"}
                    rows.append(Row(cell=cell, metrics=metrics, seed=seed))
    return rows


DRAWN = [plots.gap_curve, plots.success_rates, plots.leaderboard, plots.pair_deltas, plots.outlook]
DRAWN += [rates.transfer_rates, rates.rate_by_size]


@pytest.mark.parametrize("draw", DRAWN)
def test_pictures_are_drawn_and_need_their_metrics(draw, tmp_path):
    figure = draw(make_rows())
    figure.savefig(tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 5000
    assert not plt.get_fignums(), "no figure is left open"
    with pytest.raises(ConfigError, match="nothing to plot"):
        draw([Row(cell={"model": "cnn"}, metrics={"accuracy": 1.0})])
    whole = [replace(row, cell={**row.cell, "fraction": 1.0}) for row in make_rows()]
    tenth = [replace(row, cell={**row.cell, "fraction": 0.1}) for row in make_rows()]
    with pytest.raises(ConfigError, match=r"mix fraction = 0.1, 1.0 in one picture; add fraction=1.0 or another"):
        draw(whole + tenth)


@pytest.mark.parametrize("draw", [plots.gap_curve, plots.success_rates, plots.leaderboard, plots.pair_deltas])
def test_variants_of_a_method_are_drawn_apart(draw):
    paper = [replace(row, cell={**row.cell, "variant": "paper"}) for row in make_rows(methods=["xekl"])]
    figure = draw(make_rows(methods=["xekl"]) + paper)
    legends = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    ticks = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    titles = [axes.get_title("left") for axes in figure.axes]
    assert "XE-KL" in legends + ticks + titles and "XE-KL (paper)" in legends + ticks + titles


def test_pair_deltas_are_means_and_spreads_over_seeds():
    rows = make_rows(students=1, teachers=3)
    (axes,) = plots.pair_deltas(rows).axes
    kl, _ = axes.containers
    deltas = [[r.metrics["transfer_delta"] for r in rows if r.cell == {**rows[0].cell, "teacher": t}] for t in LABELS]
    np.testing.assert_allclose(np.array(kl.lines[0].get_ydata(), float), np.mean(deltas, 1))
    heights = [segment[1][1] - segment[0][1] for segment in kl.lines[2][0].get_segments()]
    np.testing.assert_allclose(heights, 2 * np.std(deltas, axis=1, ddof=1))
    assert [label.get_text().split("\n")[0] for label in axes.get_xticklabels()] == list(LABELS), "from weak to strong"


def test_bins_by_loop():
    frame = mean_frame(make_rows(), "transfer_delta", "accuracy_gap")
    table = plots.gap_table(frame, bins=8)
    mine = frame[frame["method"] == "kl"]
    gaps = mine["accuracy_gap"].to_numpy()
    edges = np.linspace(gaps.min(), gaps.max(), 9)
    for b in range(8):
        inside = (gaps >= edges[b]) & ((gaps < edges[b + 1]) | (b == 7))
        deltas = mine["transfer_delta"].to_numpy()[inside]
        (line,) = table[(table["method"] == "kl") & np.isclose(table["gap"], (edges[b] + edges[b + 1]) / 2)].to_dict(
            "records"
        )
        assert line["n"] == len(deltas)
        assert line["best"] == pytest.approx(deltas[deltas >= np.quantile(deltas, 0.75)].mean())


def test_success_is_the_median_over_students():
    figure = plots.success_rates(make_rows())
    texts = [text.get_text() for text in figure.axes[0].texts]
    frame = mean_frame(make_rows(), "transfer_delta")
    for method, text in zip(("kl", "kl_dp"), texts, strict=True):
        mine = frame[frame["method"] == method]
        shares = [100 * (part["transfer_delta"] > 0).mean() for _, part in mine.groupby("student")]
        assert text == f"{np.median(shares):.1f} %"


def test_diverged_students_are_in_one_median_and_hollow():
    rows = make_rows(students=3, methods=["kl"])
    lost = [replace(r, metrics={**r.metrics, "transfer_delta": -50.0, "success": 0.0}) for r in rows]
    rows = [bad if row.cell["student"] == "s2" else row for row, bad in zip(rows, lost, strict=True)]
    (axes,) = plots.success_rates(rows).axes
    shares = [np.mean([r.metrics["success"] for r in rows if r.cell["student"] == s]) for s in ("s0", "s1", "s2")]
    (text,) = (text.get_text() for text in axes.texts)
    assert text == f"{np.median(shares):.1f} %\n{np.median(shares[:2]):.1f} % without 1 diverged"
    kept, hollow = (points.get_offsets()[:, 0] for points in axes.collections)
    np.testing.assert_allclose(kept, shares[:2])
    assert hollow.tolist() == [0.0] and len(axes.collections[1].get_facecolor()) == 0
    (text,) = plots.success_rates(lost).axes[0].texts
    assert text.get_text() == "0.0 %\nall 3 diverged"


def test_rates_are_over_the_pairs_that_have_them_and_differ_in_accuracy():
    rows = make_rows(students=1, teachers=6, methods=["kl"])
    undefined = {"positive_flips_after", "transfer_rate_after"}
    lacking = [{k: v for k, v in row.metrics.items() if k not in undefined} for row in rows]
    equal = rows[0].metrics | {"accuracy_gap": 0.0, "transfer_rate_strict": 1000.0, "transfer_rate_after": 1000.0}
    changed = {"t0": lacking[0], "t1": equal}
    rows = [replace(row, metrics=changed.get(row.cell["teacher"], row.metrics)) for row in rows]
    left, right = rates.transfer_rates(rows).axes
    assert right.lines[0].get_ydata()[0] == np.median([98 + 50 * (1 + t) / 2 for t in range(2, 6)])
    strict = [20.0 + k for k in (0, 2, 3, 4, 5)]
    assert left.patches[0].get_width() == pytest.approx(np.mean(strict)), "t0 has it, t1 is equal"
    larger = [replace(row, metrics=row.metrics | {"parameters": 9e6}) for row in make_rows(students=1, methods=["kl"])]
    (axes,) = rates.rate_by_size(rows + larger).axes
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [30.0, 30.0])


def test_stages_follow_each_other():
    series = {"epoch": [1, 2], **{name: [0.1, 0.2] for name in plots.CURVES}}
    cell = {"student": "s", "teachers": "a+b", "combine": "sequential", "order": "ascending", "method": "kl_dp"}
    rows = [Row(cell={**cell, "stage": stage}, series=series) for stage in ("1", "final")]
    (axes,) = plots.stages(rows).axes
    assert axes.get_lines()[0].get_xdata().tolist() == [1, 2, 3, 4]
    unsupervised = [replace(row, cell={**row.cell, "method": "kl_dp_u"}) for row in rows]
    titles = [axes.get_title("left") for axes in plots.stages(rows + unsupervised).axes]
    assert titles == ["s, KL+DP, ascending", "s, KL+DP unsupervised, ascending"]
