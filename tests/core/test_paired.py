"""Paired differences against McNemar's test by its binomial sum, and intervals by simulation."""

from math import comb

import numpy as np
import pytest
from scipy.stats import norm, ttest_1samp

from recombine.core.paired import compare_paired, mean_over_checkpoints


def both(better, worse, same=50):
    """Two networks of which the first is alone right `better` times, the second `worse` times."""
    first = np.array([True] * better + [False] * worse + [True] * same)
    return first, np.array([False] * better + [True] * worse + [True] * same)


@pytest.mark.parametrize(("better", "worse"), [(9, 2), (2, 9), (12, 12), (1, 0), (0, 0), (30, 11)])
def test_p_is_mcnemars(better, worse):
    found = compare_paired(*both(better, worse))
    differ, images = better + worse, better + worse + 50
    tail = sum(comb(differ, k) for k in range(min(better, worse) + 1)) / 2**differ
    assert found.p == pytest.approx(min(1, 2 * tail))
    assert found.difference == pytest.approx(100 * (better - worse) / images)
    assert found.discordant == pytest.approx(100 * differ / images)
    assert found.metrics("gain").keys() == {"gain", "gain_low", "gain_high", "gain_p"}


def test_the_interval_by_hand():
    """9 and 2 of 61 images: 7/63 = 0.1111 +- 1.96 sqrt((13/63 - (7/63)^2) / 63) = 0.1088."""
    found = compare_paired(*both(9, 2))
    assert (found.low, found.high) == pytest.approx((0.23, 21.99), abs=0.01)
    assert compare_paired(*both(2, 9))[1:3] == pytest.approx((-found.high, -found.low))


def test_on_many_images_it_is_students_interval_of_the_differences():
    first, second = both(400, 250, 9350)
    expected = ttest_1samp(first.astype(int) - second, 0).confidence_interval(0.95)
    found = compare_paired(first, second)
    assert (found.low, found.high) == pytest.approx((100 * expected.low, 100 * expected.high), abs=0.01)


def test_three_images_on_which_nothing_differs_show_nothing():
    found = compare_paired(*both(0, 0, 3))
    assert found.low < -50 and found.high > 50 and found.p == 1


@pytest.mark.parametrize(
    ("images", "differ", "first"), [(20, 0.2, 0.7), (100, 0.05, 0.9), (1000, 0.2, 1.0), (1000, 0.05, 0.5)]
)
def test_the_interval_holds_the_truth_over_images(images, differ, first):
    random, truth, held = np.random.default_rng(0), 100 * differ * (2 * first - 1), 0
    for _ in range(600):
        differing = random.binomial(images, differ)
        better = random.binomial(differing, first)
        found = compare_paired(*both(better, differing - better, images - differing))
        held += found.low <= truth <= found.high
    assert held / 600 >= 0.93


def test_over_networks_alone_it_is_students_interval():
    values = [0.3, 0.1, 0.25, 0.4]
    expected = ttest_1samp(values, 0).confidence_interval(0.95)
    assert mean_over_checkpoints(values) == pytest.approx((np.mean(values), *expected))
    assert np.isnan(mean_over_checkpoints([0.3])[1])


def test_the_interval_holds_the_truth_over_networks_and_shared_images():
    """Networks whose effects vary, seen through one finite set of images: 95 % of intervals hold the mean effect."""
    random, held, images, networks, truth = np.random.default_rng(0), 0, 1000, 4, 2.0
    for _ in range(400):
        hard = random.normal(size=images)  # what all networks find hard alike
        effects = random.normal(truth, 1.0, networks)
        values, differ = [], []
        for effect in effects:
            noise = 0.9 * hard + 0.436 * random.normal(size=images)
            cut = norm.ppf([(10 - effect / 2) / 100, 1 - (10 + effect / 2) / 100])
            change = (noise > cut[1]).astype(int) - (noise < cut[0])
            values.append(100 * change.mean())
            differ.append(100 * np.abs(change).mean())
        _, low, high = mean_over_checkpoints(values, differ, images)
        held += low <= truth <= high
    assert held / 400 >= 0.93
