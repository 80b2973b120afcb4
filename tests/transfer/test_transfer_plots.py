"""Plots and their numbers, from rows made up with known answers."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from src.core.errors import ConfigError
from src.core.types import Row
from src.report import transfer as plots

LABELS = ("t0", "t1", "t2")


def made(students=4, teachers=10, methods=("kl", "kl_dp")):
    random = np.random.default_rng(0)
    rows = []
    for seed in (0, 1):
        for s in range(students):
            for t in range(teachers):
                for m, method in enumerate(methods):
                    gap = t - 4.5 - s
                    metrics = {"accuracy_gap": gap, "transfer_delta": 0.3 * gap * (1 - m) + m + 0.1 * random.normal()}
                    metrics |= {f"top{x}_transfer_rate": 100.0 - x / 2 for x in plots.SHARES}
                    metrics |= {"transfer_rate_strict": 20.0 + t, "positive_flips_before": 5 + gap}
                    metrics |= {"transfer_rate_after": 30.0, "parameters": 1e6 * (s + 1)}
                    cell = {"student": f"s{s}", "teacher": f"t{t}", "method": method, "dataset": "digits"}
                    rows.append(Row(cell=cell, metrics=metrics, seed=seed))
    return rows


@pytest.mark.parametrize(
    "draw", ["gap_curve", "success_rates", "transfer_rates", "rate_by_size", "leaderboard", "outlook", "pair_deltas"]
)
def test_pictures_are_drawn_and_need_their_metrics(draw, tmp_path):
    figure = getattr(plots, draw)(made())
    figure.savefig(tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 5000
    assert not plt.get_fignums(), "no figure is left open"
    with pytest.raises(ConfigError, match="nothing to plot"):
        getattr(plots, draw)([Row(cell={"model": "cnn"}, metrics={"accuracy": 1.0})])


def test_pair_deltas_are_means_and_spreads_over_seeds():
    rows = made(students=1, teachers=3)
    (axes,) = plots.pair_deltas(rows).axes
    kl, _ = axes.containers
    deltas = [[r.metrics["transfer_delta"] for r in rows if r.cell == {**rows[0].cell, "teacher": t}] for t in LABELS]
    np.testing.assert_allclose(np.array(kl.lines[0].get_ydata(), float), np.mean(deltas, 1))
    heights = [segment[1][1] - segment[0][1] for segment in kl.lines[2][0].get_segments()]
    np.testing.assert_allclose(heights, 2 * np.std(deltas, axis=1, ddof=1))
    assert [label.get_text().split("\n")[0] for label in axes.get_xticklabels()] == list(LABELS), "from weak to strong"


def test_bins_by_loop():
    frame = plots.frame_of(made(), "transfer_delta", "accuracy_gap")
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
    figure = plots.success_rates(made())
    texts = [text.get_text() for text in figure.axes[0].texts]
    frame = plots.frame_of(made(), "transfer_delta")
    for method, text in zip(("kl", "kl_dp"), texts, strict=True):
        mine = frame[frame["method"] == method]
        shares = [100 * (part["transfer_delta"] > 0).mean() for _, part in mine.groupby("student")]
        assert text == f"{np.median(shares):.1f} %"


def test_stages_follow_each_other():
    series = {"epoch": [1, 2], **{name: [0.1, 0.2] for name in plots.CURVES}}
    cell = {"student": "s", "teachers": "a+b", "combine": "sequential", "order": "ascending"}
    figure = plots.stages([Row(cell={**cell, "stage": stage}, series=series) for stage in ("1", "final")])
    (axes,) = figure.axes
    assert axes.get_lines()[0].get_xdata().tolist() == [1, 2, 3, 4]
