"""Metrics of a transfer against definitions spelled out sample by sample."""

import numpy as np
import pytest
from scipy.stats import entropy

from recombine.flips.top_classes import select_top_classes
from recombine.transfer.metrics import TOP_PERCENTAGES, transfer_metrics
from recombine.transfer.rate_plots import published_rates


@pytest.fixture(scope="module")
def predicted():
    random = np.random.default_rng(0)
    labels = random.integers(0, 8, 600)
    students = [np.where(random.random(600) < skill, labels, random.integers(0, 8, 600)) for skill in (0.5, 0.6, 0.7)]
    return (*(student == labels for student in students), labels)


def test_identities(predicted):
    metrics, series = transfer_metrics(*predicted, classes=8)
    assert metrics["transfer_delta"] == pytest.approx(metrics["knowledge_gain"] - metrics["knowledge_loss"])
    assert metrics["positive_flips_before"] - metrics["negative_flips_before"] == pytest.approx(metrics["accuracy_gap"])
    assert sum(series["gains_per_class"]) == round(6 * metrics["knowledge_gain"])
    assert metrics["top100_improve"] + metrics["other_improve"] == pytest.approx(100)
    assert metrics["success"] == 100


def test_rates_are_the_definitions_by_sample(predicted):
    before, after, teacher, labels = predicted
    control = np.roll(after, 1)
    metrics, _ = transfer_metrics(*predicted, classes=8, controls={"xe": control})
    offered = [i for i in range(600) if teacher[i] and not before[i]]
    left = [i for i in range(600) if teacher[i] and not after[i]]
    gained = [i for i in range(600) if after[i] and not before[i]]
    strict = 100 * len(set(offered) & set(gained)) / len(offered)
    assert metrics["transfer_rate_strict"] == pytest.approx(strict)
    without = 100 * sum(control[i] for i in offered) / len(offered)
    assert metrics["transfer_rate_strict_xe"] == pytest.approx(without)
    classes = {labels[i] for i in offered}
    inside = [i for i in gained if labels[i] in classes]
    assert metrics["transfer_rate"] == pytest.approx(100 * len(inside) / len(offered))
    assert metrics["transfer_rate_after"] == pytest.approx(100 * len(inside) / len(left))
    assert metrics["entropy_gains"] == pytest.approx(entropy(np.bincount(labels[gained], minlength=8)))
    counts = np.bincount(labels[offered], minlength=8)
    for percent in TOP_PERCENTAGES:
        top = set(select_top_classes(counts, percent).tolist())
        improve = 100 * sum(labels[i] in top for i in gained) / len(gained)
        assert metrics[f"top{percent}_improve"] == pytest.approx(improve)
        expected = 100 - percent + improve * len(gained) / len(left)
        assert published_rates(metrics)[f"published_rate_top{percent}"] == pytest.approx(expected)


def test_gains_where_the_teacher_had_nothing_to_add_are_not_transferred():
    """Class 1 is gained without the teacher; by hand, of 2 images of each class."""
    before, after, teacher = (np.array(x, bool) for x in ([0, 0, 0, 1], [1, 0, 1, 1], [1, 1, 0, 0]))
    control = np.array([0, 0, 0, 0], bool)
    metrics, _ = transfer_metrics(before, after, teacher, np.array([0, 0, 1, 1]), 2, controls={"xe": control})
    assert metrics["transfer_rate"] == metrics["transfer_rate_strict"] == 50 and metrics["transfer_rate_after"] == 100
    assert metrics["gain_over_xe"] == 75 and metrics["transfer_delta"] == 50
    assert metrics["transfer_delta_xe"] == -25


def test_a_rate_of_nothing_is_left_out():
    """A mean over pairs is not pulled to 0 by a pair in which there was nothing to transfer, or nothing is left."""
    labels, right, wrong = np.arange(3), np.array([True] * 3), np.array([False, True, True])
    metrics, _ = transfer_metrics(right, right, right, labels, classes=3)
    assert metrics["transfer_delta"] == metrics["success"] == 0
    assert not [name for name in metrics if "rate" in name or "improve" in name or "entropy" in name]
    learnt, _ = transfer_metrics(wrong, right, right, labels, classes=3)
    assert learnt["transfer_rate"] == learnt["transfer_rate_strict"] == learnt["top100_improve"] == 100
    assert "transfer_rate_after" not in learnt and published_rates(learnt) == {}
    stuck, _ = transfer_metrics(wrong, wrong, right, labels, classes=3)
    assert stuck["transfer_rate"] == stuck["transfer_rate_after"] == stuck["transfer_rate_strict"] == 0
    assert "top100_improve" not in stuck
    assert published_rates(stuck)["published_rate_top2"] == 98, "by its definition, though nothing was learnt"
