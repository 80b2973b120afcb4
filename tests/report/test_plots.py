"""What the plots show, read back from the figures, against SciPy and NumPy on the raw predictions."""

import numpy as np
import pytest
from PIL import Image
from scipy.cluster.hierarchy import cophenet, leaves_list, linkage
from scipy.spatial.distance import pdist

from recombine.core.errors import ConfigError
from recombine.core.types import Row
from recombine.flips import plots as figures
from recombine.patch import plots as patch
from recombine.pretrain.plots import training_curves
from recombine.report.columns import natural
from recombine.report.registry import PLOTS
from recombine.report.style import PNG_LIMIT, save, svg


def test_clustering_is_scipys_on_what_the_models_get_right(flip_rows, chances, digits):
    names = sorted(chances, key=natural)
    right = np.stack([chances[name].argmax(1) == digits[3] for name in names])
    expected = linkage(pdist(right, "hamming") * 100, "average", optimal_ordering=True)
    tree = figures.cluster(figures.pair_matrix(flip_rows, "rho_pos"))
    np.testing.assert_allclose(cophenet(tree), cophenet(expected), atol=1e-9)
    main = figures.heat_map(flip_rows).axes[1]
    shown = [label.get_text() for label in main.get_yticklabels()]
    assert shown in ([names[i] for i in leaves_list(expected)], [names[i] for i in leaves_list(expected)][::-1])
    assert shown == [label.get_text() for label in main.get_xticklabels()]


def test_heat_map_prints_the_rows_numbers(flip_rows):
    main = figures.heat_map(flip_rows).axes[1]
    names = [label.get_text() for label in main.get_yticklabels()]
    printed = {(names[int(t.get_position()[1])], names[int(t.get_position()[0])]): t.get_text() for t in main.texts}
    assert printed == {(r.cell["teacher"], r.cell["student"]): f"{r.metrics['rho_pos']:.1f}" for r in flip_rows}


def test_heat_map_of_another_metric_and_of_incomplete_pairs(flip_rows):
    main = figures.heat_map(flip_rows[1:], "accuracy_gap").axes[1]
    image = main.get_images()[0]
    assert image.norm(0.0) == 0.5
    assert len(main.texts) == len(flip_rows) - 1
    assert [label.get_text() for label in main.get_yticklabels()] == sorted(
        {r.cell["teacher"] for r in flip_rows}, key=natural
    )


def test_untrained_copies_stay_out_of_the_pictures(flip_rows):
    odd = [type(r)({**r.cell, "teacher": "random", "baseline": "teacher"}, r.metrics, r.series) for r in flip_rows[:3]]
    assert "random" not in figures.pair_matrix([*flip_rows, *odd], "rho_pos").index


def test_histogram_bars_are_shares_of_the_class(flip_rows):
    figure = figures.class_histogram(flip_rows)
    gaps = [row.metrics["accuracy_gap"] for row in flip_rows]
    strongest = flip_rows[int(np.argmax(gaps))]
    heights = [bar.get_height() for bar in figure.axes[-1].patches]
    counts, images = (np.array(strongest.series[k]) for k in ("positive_flips_per_class", "images_per_class"))
    np.testing.assert_allclose(heights, np.sort(100 * counts / images)[::-1])
    assert len(figure.axes) == 3


def test_scatter_marks_the_minimum_and_the_zero(flip_rows):
    axes = figures.gap_scatter(flip_rows).axes[0]
    points = axes.collections[1].get_offsets()
    expected = [(r.metrics["accuracy_gap"], r.metrics["rho_pos"]) for r in flip_rows]
    np.testing.assert_allclose(points, expected)
    least = min(r.metrics["rho_pos"] for r in flip_rows)
    assert any(text.get_text().startswith(f"minimum {least:.2f} %") for text in axes.texts)
    assert any(np.array_equal(line.get_xdata(), [0, 0]) for line in axes.lines)


def test_entropy_has_the_uniform_reference(flip_rows):
    axes = figures.entropy_scatter(flip_rows).axes[0]
    assert axes.lines[0].get_ydata() == pytest.approx([np.log(10)] * 2)
    assert max(axes.collections[0].get_offsets()[:, 1]) < np.log(10)


def test_ensemble_bars_are_gains_over_the_better_one(flip_rows):
    axes = figures.ensemble_gain(flip_rows).axes[0]
    best = max(
        r.metrics["ensemble_accuracy"] - max(r.metrics["accuracy_teacher"], r.metrics["accuracy_student"])
        for r in flip_rows
    )
    assert max(bar.get_width() for bar in axes.containers[1]) == pytest.approx(best)
    assert len(axes.containers[0]) == figures.PAIRS_AS_BARS


def test_curves_are_means_over_seeds(pretrain_rows):
    axes = training_curves(pretrain_rows).axes[1]
    lines = {line.get_label(): line.get_ydata() for line in axes.lines}
    curves = [r.series["accuracy"] for r in pretrain_rows if r.status == "ok" and r.cell["model"] == "linear"]
    np.testing.assert_allclose(lines["linear (n = 3)"], np.mean(curves, axis=0))
    band = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert band.max() == pytest.approx((np.mean(curves, 0) + np.std(curves, 0, ddof=1)).max())


def test_curves_with_epochs_that_were_not_evaluated(pretrain_rows):
    row = pretrain_rows[0]
    gaps = [None if i % 2 else value for i, value in enumerate(row.series["accuracy"])]
    sparse = type(row)(row.cell, row.metrics, {**row.series, "accuracy": gaps})
    assert list(training_curves([sparse]).axes[1].lines[0].get_xdata()) == [1, 3, 5, 7]


@pytest.mark.parametrize("entry", PLOTS)
def test_rows_that_hold_nothing_are_an_error_not_an_empty_plot(entry, pretrain_rows):
    failed = [row for row in pretrain_rows if row.status != "ok"]
    for picture in PLOTS[entry].values():
        with pytest.raises(ConfigError, match="nothing to plot"):
            picture.draw(failed)


def test_only_patches_for_one_task_are_points_of_what_a_task_costs():
    cell = {"model": "cnn", "dataset": "mnist", "method": "fc", "modules": "none", "task": "usps", "protocol": "single"}
    rows = [
        Row({**cell, "protocol": protocol}, {"accuracy_patched": accuracy, "trainable_parameters": 0.0})
        for protocol, accuracy in (("single", 80.0), ("scratch", 20.0))
    ]
    (axes,) = patch.parameters(rows).axes
    assert [line.get_ydata().tolist() for line, *_ in axes.containers] == [[80.0]]


def test_pictures_are_small_and_repeatable(flip_rows, tmp_path):
    file = save(figures.heat_map(flip_rows), tmp_path / "images" / "map.png")
    assert file.stat().st_size <= PNG_LIMIT
    with Image.open(file) as image:
        assert image.width > 800
    assert svg(figures.gap_scatter(flip_rows)) == svg(figures.gap_scatter(flip_rows))


def test_a_large_picture_gets_a_palette(tmp_path, monkeypatch, flip_rows):
    plain = save(figures.heat_map(flip_rows), tmp_path / "plain.png").stat().st_size
    monkeypatch.setattr("recombine.report.style.PNG_LIMIT", 1000)
    assert save(figures.heat_map(flip_rows), tmp_path / "small.png").stat().st_size < plain


def test_names_are_in_the_order_of_their_numbers():
    ordered = [["resnet8", "resnet20"], ["0.05", "0.1", "0.5", "1.0"], ["-3 to -1", "-1 to 1"], ["v1.2", "v1.10"]]
    ordered += [["-1.5", "-0.5", "0"], ["0.05-0.1", "0.1-0.2"], ["20", "100", "none"]]
    for names in ordered:
        assert sorted(names[::-1], key=natural) == names
