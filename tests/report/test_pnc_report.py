"""Claims and plots of cloning, from rows with known answers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from recombine.core.errors import ConfigError
from recombine.core.types import Row
from recombine.pnc import kept_plots, plots
from recombine.pnc.choices import derive_choices
from recombine.pnc.claims import HITS, derive_claims
from recombine.pnc.gains import gain, pack
from recombine.pnc.verdicts import derive_verdicts
from recombine.report.pivot import build
from recombine.report.spec import load_specs

TABLES = Path(__file__).resolve().parents[2] / "config" / "table"
USUAL = {"keep_ratio": 0.5, "head": "rows", "positions": "all", "adapter": "conv1x1_bn"}
NONE = dict.fromkeys(USUAL, "none")
LAYERS = ["conv3", "conv4"]
RATES = {"pnc": 0.8, "pnc_random": 0.7, "finetune": 0.82}


def row(method, average, lost, seed=0, kept=None, **cell):
    own = USUAL if method == "pnc" else NONE
    where = {"dataset": "mnist_high", "target": "cnn-mnist_high-s0", "source": "cnn-mnist_low-s1000", "clone": "0 1"}
    where |= {"classes": 2, "fraction": 0.3, "use_target_data": True, "method": method, **own, **cell}
    metrics = {"accuracy_average": average, "locality_drop": lost, "position": 2.0, "kept_filters": 50.0}
    metrics |= {"select_average": average if kept is None else kept}
    metrics |= {"accuracy_original": average + 1, "accuracy_cloned": average - 1}
    return Row(where, metrics, entry="pnc", seed=seed, run=f"{method}-{seed}-{sorted(cell.items())}")


def compared():
    found = [row("pnc", 90.0 + s, 2.0, s) for s in range(3)] + [row("finetune", 84.0, 9.0, s) for s in range(3)]
    found += [row("lwf", 80.0, 4.0, s) for s in range(3)] + [row("ewc", 82.0, 0.0, s) for s in range(3)]
    return [
        *found,
        row("pnc", 92.0, 1.0, fraction=1.0),
        row("finetune", 99.0, 0.0, fraction=1.0, use_target_data=False),
    ]


def test_claims_are_against_the_best_of_the_same_task_and_seed():
    found = {(r.seed, r.cell["fraction"]): r.metrics for r in derive_claims(compared())}
    assert len(found) == 4 and found[0, 1.0] == {"accuracy_average": 92.0}
    assert found[1, 0.3]["gain_over_tuning"] == 7 and found[1, 0.3]["gain_over_continual"] == 9
    assert found[1, 0.3]["locality_gain"] == pytest.approx(100 * (1 - 2 / 9)), "of finetune, the best, not of lwf"
    assert found[0, 0.3]["gain_of_all_images"] == 2 and "gain_of_all_images" not in found[1, 0.3]


def test_the_best_is_that_on_images_kept_for_selection_and_else_not_known():
    clone, better = row("pnc", 90.0, 2.0), row("finetune", 84.0, 8.0, kept=80.0)
    other = row("lwf", 86.0, 4.0, kept=79.0)
    (found,) = derive_claims([clone, other, better, row("pnc_random", 88.0, 2.0)])
    assert found.metrics["gain_over_tuning"] == 6 and found.metrics["locality_gain"] == 75, "finetune, not lwf"
    del other.metrics["select_average"]
    (found,) = derive_claims([clone, better, other, row("pnc_random", 88.0, 2.0)])
    assert {"gain_over_tuning", "locality_gain"}.isdisjoint(found.metrics) and found.metrics["gain_over_random"] == 2


def test_ablations_are_no_part_of_the_claims_and_nothing_lost_is_no_gain():
    ablations = [
        row("pnc", 10.0, 50.0, **other)
        for other in (
            *({"head": "full"}, {"keep_ratio": 0.1}, {"positions": "2"}, {"granularity": "weight"}),
            *({"mask_input": True}, {"segment": "quickshift"}),
        )
    ]
    (found,) = derive_claims([*ablations, row("pnc", 90.0, 2.0), row("finetune", 84.0, 0.0)])
    assert found.metrics == {"accuracy_average": 90.0, "gain_over_tuning": 6.0, "lost_below_half": -2.0}
    old = row("pnc", 70.0, 1.0)
    (found,) = derive_claims([replace(old, cell={k: v for k, v in old.cell.items() if k not in {*USUAL, "classes"}})])
    assert found.cell["classes"] == 2


def test_the_table_of_claims_has_its_mean_over_seeds():
    table = build(load_specs(TABLES)["pnc/claims"], compared(), {"fraction": 0.3})
    (line,) = table.frame.to_dict("records")
    assert line["gain_over_tuning"] == 7 and line["gain_over_tuning_std"] == 1 and line["gain_over_tuning_n"] == 3
    assert not any("warning" in note for note in table.notes)


def test_claims_have_intervals_where_rows_say_which_images_were_right():
    random = np.random.default_rng(0)
    right = {name: [random.random(count) < rate for count in (400, 200)] for name, rate in RATES.items()}
    rows = [
        replace(
            row(name, 50 * sum(each.mean() for each in hits), 1.0),
            series={k: [pack(h)] for k, h in zip(HITS, hits, strict=True)},
        )
        for name, hits in right.items()
    ]
    (found,) = derive_claims(rows)
    for name, other in (("random", "pnc_random"), ("tuning", "finetune")):
        expected = gain("gain", right["pnc"], right[other])
        assert [found.metrics[f"gain_over_{name}{end}"] for end in ("", "_low", "_high")] == list(expected.values())
    assert found.cell["target"] == "cnn-mnist_high" and "gain_over_whole" not in found.metrics


def searched(method="pnc", **cell):
    values = {"original": [90.0, 95.0, 97.0], "cloned": [80.0, 85.0, 75.0], "average": [85.0, 90.0, 86.0]}
    series = {"search_position": [1, 2, 3]} | {f"search_{name}": list(curve) for name, curve in values.items()}
    return [
        replace(
            row(method, 90.0, 1.0, s, **cell),
            series={k: [v + s * (k != "search_position") for v in c] for k, c in series.items()},
        )
        for s in range(2)
    ]


def curves_of(axes):
    return {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}


def test_accuracy_against_position():
    rows = [*searched(), *searched(clone="3 4 5 6 7 8 9"), *searched(positions="1 2 3")]
    figure = plots.position_curve(rows)
    titles = [axes.get_title("left").removeprefix("cnn-mnist_high-s0, ") for axes in figure.axes]
    assert titles == ["0 1", "3 4 5 6 7 8 ... (7)"]
    average = curves_of(figure.axes[0])["mean"]
    np.testing.assert_allclose(average.get_data(), [[1, 2, 3], [85.5, 90.5, 86.5]])
    with pytest.raises(ConfigError, match="nothing to plot"):
        plots.position_curve(searched(positions="2"))


def single(label, seed, masks, similarity):
    series = {"mask_layers": LAYERS, "masks": masks, "similarity_by_class": similarity, "source_classes": ["a", "b"]}
    return replace(row("pnc", 90.0, 1.0, seed, clone=label, positions="2"), series=series)


def modules():
    return [
        single("0", 0, ["f0", "c"], [1.0, 0.2]),
        single("0", 1, ["f0", "3"], [0.8, 0.4]),
        single("1", 0, ["3c", "3"], [0.1, 0.9]),
        single("1", 1, ["3c", "3"], [0.1, 0.7]),
    ]


def test_similarity_is_a_matrix_of_modules_and_classes():
    axes, _ = plots.similarity_matrix(modules()[::-1]).axes
    np.testing.assert_allclose(axes.images[0].get_array(), [[0.9, 0.3], [0.1, 0.8]])
    assert [text.get_text() for text in axes.get_yticklabels()] == ["a", "b"]
    assert [text.get_text() for text in axes.texts] == ["0.90", "0.30", "0.10", "0.80"]


def test_modules_share_filters():
    """11110000 and 00111100 share 2 of 6; 1100 and 0011 nothing, 0011 and 0011 all."""
    assert plots.jaccard(["f0", "c"], ["3c", "3"]) == pytest.approx([1 / 3, 0])
    elsewhere = replace(modules()[0], series=modules()[0].series | {"mask_layers": ["conv4"], "masks": ["c"]})
    (axes,) = plots.mask_overlap([*modules(), elsewhere]).axes
    mean = curves_of(axes)["mean over pairs of classes"]
    np.testing.assert_allclose(mean.get_ydata(), [1 / 3, 0.5])
    np.testing.assert_allclose(curves_of(axes)["chance"].get_ydata(), 1 / 3)
    with pytest.raises(ConfigError, match="nothing to plot"):
        plots.mask_overlap(modules()[:1])


def test_curves_over_filters_and_images():
    kept = [row("pnc", 80 + 10 * ratio, 1.0, s, keep_ratio=ratio) for ratio in (0.25, 0.5, 1.0) for s in range(2)]
    (axes,) = plots.keep_curve(kept).axes
    np.testing.assert_allclose(curves_of(axes)["pnc: mean"].get_data(), [[0.25, 0.5, 1.0], [82.5, 85.0, 90.0]])
    images = [row(m, 80 + 10 * part, 1.0, fraction=part) for m in ("pnc", "lwf") for part in (0.1, 0.3, 1.0)]
    (axes,) = plots.data_curve(images).axes
    np.testing.assert_allclose(curves_of(axes)["lwf: mean"].get_data(), [[0.1, 0.3, 1.0], [81.0, 83.0, 90.0]])
    with pytest.raises(ConfigError, match="nothing to plot"):
        plots.data_curve(images[:1])


def test_verdicts_are_over_pairs_of_networks_with_an_interval_by_hand():
    def pair(k, method, average, **more):
        made = row(method, average, 2.0, seed=k, target=f"cnn-mnist_high-s{k}", source=f"cnn-mnist_low-s100{k}")
        return replace(made, metrics=made.metrics | more)

    def probed(gain):
        return {"gain_over_probe": -gain, "gain_over_probe_low": -gain - 1, "gain_over_probe_high": -gain + 1}

    rows = [pair(k, "pnc", 80.0 + gain, **probed(gain)) for k, gain in enumerate([6.5, 7.0, 7.5])]
    rows += [pair(k, "finetune", 80.0) for k in range(3)] + [pair(k, "pnc_random", 87.0) for k in range(3)]
    rows += [pair(k, "pnc_reinitialised", 87.0) for k in range(2)]
    found = {r.cell["claim"][0]: r for r in derive_verdicts(rows)}
    half = 4.302653 * 0.5 / 3**0.5
    assert found["1"].cell["verdict"] == "holds" and found["1"].metrics["effect"] == pytest.approx(7)
    assert found["1"].metrics["effect_low"] == pytest.approx(7 - half, abs=1e-5)
    assert found["5"].cell["verdict"] == "contradicted"
    assert found["5"].metrics["effect_high"] == pytest.approx(-7 + (half**2 + 1) ** 0.5, abs=1e-5)
    assert found["3"].cell["verdict"] == "contradicted" and found["3"].metrics["effect"] == -1
    assert [found[k].cell["verdict"] for k in "467"] == ["not tested", "not tested", "not shown"]
    table = build(load_specs(TABLES)["pnc/verdicts"], rows)
    assert len(table.rows) == 7 and not any("warning" in note for note in table.notes)


def test_choices_of_filters_over_what_is_kept_have_standard_errors():
    def kept(method, ratio, seed, value):
        made = row(method, value, 1.0, seed, keep_ratio=ratio, positions="1")
        return replace(made, metrics=made.metrics | {"similarity_cloned": value / 100, "module_balanced": value / 2})

    rows = [kept("pnc_random", ratio, k, 50 + 3 * k) for ratio in (0.1, 0.3, 0.5) for k in range(2)]
    rows += [kept("pnc_whole", 1.0, k, 60 + 4 * k) for k in range(2)]
    figure = kept_plots.choice_curve([*rows, row("pnc_random", 0.0, 1.0, keep_ratio=0.5)])
    after = figure.axes[2]
    line, star = after.containers
    np.testing.assert_allclose(line.lines[0].get_xydata(), [[10, 51.5], [30, 51.5], [50, 51.5]])
    np.testing.assert_allclose(star.lines[0].get_xydata(), [[100, 62]])
    ends = [segment[:, 1] for segment in line.lines[2][0].get_segments()]
    np.testing.assert_allclose(ends, [[50, 53]] * 3)  # 51.5 +- 4.5 ** 0.5 / 2 ** 0.5
    with pytest.raises(ConfigError, match="nothing to plot"):
        kept_plots.choice_curve(rows[:4])


def test_what_was_chosen_stands_between_the_best_and_the_worst_by_hand():
    right = {"all": 0.8, "one": 0.7, "two": 0.9, "three": 0.75}
    random = np.random.default_rng(1)
    hits = {name: [random.random(count) < rate for count in (400, 200)] for name, rate in right.items()}
    rows = []
    for name, both in hits.items():
        made = row("compose", 50 * sum(each.mean() for each in both), 1.0, networks=name, clone="a + b")
        rows.append(replace(made, series={k: [pack(h)] for k, h in zip(HITS, both, strict=True)}))
    (found,) = derive_choices([*rows, row("compose", 5.0, 1.0, networks="one", clone="a + c"), row("pnc", 99.0, 1.0)])
    assert found.metrics["choices"] == 3 and found.metrics["best_by_hand"] == rows[2].metrics["accuracy_average"]
    for kind, other in (("best", "two"), ("worst", "one")):
        expected = gain("gain", hits["all"], hits[other])
        assert [found.metrics[f"gain_over_{kind}{end}"] for end in ("", "_low", "_high")] == list(expected.values())
    assert len(build(load_specs(TABLES)["pnc/choices"], rows).rows) == 1
