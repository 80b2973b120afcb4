"""Plots of patch rows, read back from the figures; rows made up with known answers."""

from dataclasses import replace

import numpy as np
import pytest

from recombine.core.errors import ConfigError
from recombine.core.types import Row
from recombine.patch import plots

COUNTS = {("fc", "none"): 0.0, ("delta", "1"): 7206.0, ("delta", "2"): 9092.0, ("paint", "none"): 270896.0}


def made():
    rows = []
    for seed in range(3):
        for model in ("resnet20", "resnet56"):
            for task, level in (("mnist", 80.0), ("usps", 70.0)):
                for k, ((method, modules), count) in enumerate(COUNTS.items()):
                    cell = {"model": model, "task": task, "method": method, "modules": modules, "protocol": "single"}
                    metrics = {"accuracy_patched": level + k + seed, "trainable_parameters": count}
                    alphas = [0.0, 0.5, 1.0]
                    series = {"alpha": alphas, "chosen": [0.5], "choice_base": [90.0 + seed, 60.0, 10.0]}
                    series |= {f"choice_{task}": [5.0, level, 95.0]}
                    rows.append(Row(cell=cell, metrics=metrics, series=series if method == "paint" else {}, seed=seed))
    return rows


def test_a_point_for_every_method_and_task(tmp_path):
    figure = plots.parameters(made()[::-1])
    figure.savefig(tmp_path / "plot.png")
    assert [axes.get_title("left") for axes in figure.axes] == [
        f"{model}: {task}" for model in ("resnet56", "resnet20") for task in ("usps", "mnist")
    ]
    (mnist,) = (axes for axes in figure.axes if axes.get_title("left") == "resnet20: mnist")
    points = sorted((float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line, *_ in mnist.containers)
    np.testing.assert_allclose(points, [(count, 81.0 + k) for k, count in enumerate(COUNTS.values())])
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["fc", "delta (1)", "delta (2)", "paint"], "from cheap to dear"


def test_parts_left_out_are_not_shown_and_no_two_methods_look_alike():
    rows = made()
    for k in range(20):
        names = {**rows[0].cell, "method": f"adapter{k}"}
        rows.append(replace(rows[0], cell=names, metrics={"accuracy_patched": 50.0, "trainable_parameters": 10.0 * k}))
    rows.append(replace(rows[0], cell={**rows[0].cell, "method": "delta_all_ones", "modules": "all"}))
    figure = plots.parameters(rows)
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(names) == 24 and not [name for name in names if name.startswith("delta_")]
    looks = {(bar.lines[0].get_color(), bar.lines[0].get_marker()) for axes in figure.axes for bar in axes.containers}
    assert len(looks) == 24


def test_the_spread_is_over_seeds():
    (axes, *_) = plots.parameters([row for row in made() if row.cell["model"] == "resnet20"]).axes
    bars = axes.containers[0].lines[2][0].get_segments()[0]
    assert bars[1][1] - bars[0][1] == pytest.approx(2 * np.std([0, 1, 2], ddof=1))


def test_interpolation_shows_both_ends_and_the_choice():
    figure = plots.interpolation(made())
    assert len(figure.axes) == 4
    base, task = figure.axes[0].lines[:2]
    np.testing.assert_allclose(base.get_ydata(), [91.0, 60.0, 10.0])
    np.testing.assert_allclose(task.get_ydata(), [5.0, 80.0, 95.0])
    assert {float(line.get_xdata()[0]) for line in figure.axes[0].lines[2:]} == {0.5}


@pytest.mark.parametrize("draw", [plots.parameters, plots.interpolation])
def test_rows_without_the_metrics_are_refused(draw):
    with pytest.raises(ConfigError, match="nothing to plot"):
        draw([Row(cell={"model": "cnn", "task": "x", "protocol": "single"}, metrics={"accuracy": 1.0})])
