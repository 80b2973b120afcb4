"""Weights, Tchebycheff and steering, worked by hand."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from recombine.stitch.search.acceptance import (
    ObjectiveScale,
    accepts,
    assign,
    farthest_first,
    spread_weights,
    tchebycheff,
)
from recombine.stitch.search.space import Individuals

FOUR = np.array([[-0.875, 50.0], [-0.625, 20.0], [-0.5, 10.0], [-0.375, 30.0]])
"""In 0..1: (0, 1), (0.5, 0.25), (0.75, 0), (1, 0.5)."""


def individual(objectives, accuracy=1.0):
    return Individuals(
        np.zeros(3, np.int8), np.array(objectives), np.float64(accuracy), np.ones(3, bool), np.bool_(False)
    )


def test_objectives_are_scaled_over_the_population():
    scale = ObjectiveScale.of(FOUR)
    assert scale(FOUR) == pytest.approx(np.array([[0, 1], [0.5, 0.25], [0.75, 0], [1, 0.5]]))
    assert scale(np.array([-1.0, 0.0])) == pytest.approx([-0.25, -0.25]), "a child may lie outside"
    assert ObjectiveScale.of(np.ones((3, 2)))(np.ones((3, 2))).tolist() == [[0, 0]] * 3


def test_tchebycheff_by_hand():
    scaled = ObjectiveScale.of(FOUR)(FOUR)
    assert tchebycheff(scaled, np.array([1, 0])) == pytest.approx([0, 0.5, 0.75, 1])
    assert tchebycheff(scaled, np.array([0.25, 0.75])) == pytest.approx([0.75, 0.1875, 0.1875, 0.375])


def test_each_vector_goes_to_the_best_of_those_without_one():
    """The first is best by (1, 0), the third by (0, 1), the second by (0.5, 0.5) with 0.25; the last takes the rest."""
    vectors = np.array([[1, 0], [0, 1], [0.5, 0.5], [0.9, 0.1]])
    scaled = ObjectiveScale.of(FOUR)(FOUR)
    assert assign(vectors, scaled).tolist() == vectors[[0, 2, 1, 3]].tolist()
    # (0.9, 0.1) is served first and takes the first, with 0.1; (1, 0) then has 0.5 at best
    assert assign(vectors[::-1], scaled).tolist() == [[0.9, 0.1], [0.5, 0.5], [0, 1], [1, 0]]


@pytest.mark.parametrize("count", [2, 3, 40])
def test_weights_are_spread(count):
    weights = spread_weights(count, np.random.default_rng(0))
    assert weights[:2].tolist() == [[1, 0], [0, 1]]
    assert weights.shape == (count, 2) and weights.sum(1) == pytest.approx(1) and (weights >= 0).all()
    if count > 2:
        assert weights[2] == pytest.approx([0.5, 0.5], abs=0.1)
    if count == 40:
        assert np.diff(np.sort(weights[:, 0])).max() < 2 / count, "no gap much wider than between even ones"


def test_farthest_first_against_brute_force():
    points = np.random.default_rng(1).random((30, 2))
    chosen = [7]
    while len(chosen) < 12:
        chosen.append(int(cdist(points, points[chosen]).min(1).argmax()))
    assert farthest_first(points, 12, 7).tolist() == chosen
    assert sorted(farthest_first(np.ones((4, 2)), 4, 2).tolist()) == [0, 1, 2, 3], "each once, even where all are equal"


def test_acceptance_is_by_the_threshold_then_by_the_scalarization():
    scale, weights = ObjectiveScale.of(FOUR), np.array([0.25, 0.75])
    good, cheap, plain = individual(FOUR[0], 0.8), individual(FOUR[2], 0.5), individual(FOUR[1], 0.6)
    assert not accepts(good, plain, weights, scale, 0.0), "0.75 > 0.1875"
    assert accepts(plain, good, weights, scale, 0.0)
    assert accepts(cheap, plain, weights, scale, 0.0) and accepts(plain, cheap, weights, scale, 0.0), "a tie"
    assert accepts(good, plain, weights, scale, 0.7), "only the other lacks accuracy"
    assert not accepts(cheap, plain, weights, scale, 0.7), "both lack, this one more"
    assert accepts(plain, good, weights, scale, 0.55), "none lacks"
