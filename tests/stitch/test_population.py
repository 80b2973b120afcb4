"""Initial populations are stratified exactly; crossover and mutation do what they should, and nothing one-sided."""

from fractions import Fraction
from math import floor

import numpy as np
import pytest
from scipy.stats import binomtest, chisquare

from recombine.stitch.search.population import fittest, initial_population, mutate, two_point_crossover
from tests.stitch.lotz import space


def rng():
    return np.random.default_rng(3)


@pytest.mark.parametrize(
    ("bits", "expected", "count"),
    [(336, "6.72", 256), (412, "6.18", 128), (112, "6.16", 2048), (100, "7", 100), (10, "2", 7), (10, "5", 3)],
)
def test_every_value_occurs_as_often_as_it_should(bits, expected, count):
    genotypes = initial_population(space(bits, float(expected)), count, rng())
    assert genotypes.shape == (count, bits + 1) and genotypes.dtype == np.int8
    on = count - floor((1 - Fraction(expected) / bits) * count)
    assert (genotypes[:, :-1].sum(0) == on).all() and genotypes[:, :-1].max() == 1
    thirds = np.bincount(genotypes[:, -1], minlength=3)
    assert thirds.sum() == count and np.ptp(thirds) <= 1


def test_genes_are_drawn_each_by_itself():
    genotypes = initial_population(space(400, 40), 120, rng())
    together = np.triu(genotypes[:, :-1].T.astype(int) @ genotypes[:, :-1], 1).sum() / (400 * 399 / 2)
    assert together == pytest.approx(12 * 12 / 120, rel=0.05)
    assert genotypes[:, :-1].sum(1).std() > 3, "individuals differ in how many stitches are on"


def test_few_stitches_are_on_half_of_the_time():
    assert initial_population(space(4), 100, rng())[:, :-1].mean() == 0.5


def test_some_genes_may_vary_alone():
    genes = np.array([True, True, False, False, False, False, True])
    some = initial_population(space(6, 1.0), 100, rng(), genes)
    assert some[:, :2].mean() == 0.5 and not some[:, 2:-1].any() and set(some[:, -1]) == {0, 1, 2}
    mutant = mutate(np.zeros((30_000, 7), np.int8), space(6).alphabet, rng(), genes) > 0
    assert not mutant[:, 2:-1].any() and mutant[:, :2].mean() == pytest.approx(1 / 3, abs=0.01)


def test_the_fittest_come_front_by_front():
    objectives = np.array([[5, 5], [1, 3], [2, 4], [3, 1], [2, 2], [3, 3]])
    assert fittest(objectives, 9).tolist() == [1, 4, 3, 2, 5, 0] and fittest(objectives, 2).tolist() == [1, 4]


def test_two_points_exchange_what_lies_between():
    first, second = np.zeros((4000, 9), np.int8), np.ones((4000, 9), np.int8)
    one, other = two_point_crossover(first, second, rng())
    assert (one + other == 1).all()
    changes = np.abs(np.diff(np.pad(one, ((0, 0), (1, 1))), axis=1))
    assert (changes.sum(1) == 2).all(), "one stretch, never empty"
    assert chisquare(changes.sum(0)).pvalue > 0.001, "all ten places are cut alike"


def test_mutation_is_symmetric():
    """As often on as off, and each output as often from each other one: at a rate of 1/L, whatever the value is."""
    alphabet = np.array([2] * 8 + [3])
    genotypes = np.random.default_rng(0).integers(0, alphabet, (60_000, 9)).astype(np.int8)
    mutant = mutate(genotypes, alphabet, rng())
    assert mutant.dtype == np.int8 and (mutant >= 0).all() and (mutant < alphabet).all()
    changed = mutant != genotypes
    for value in (0, 1):
        had = genotypes[:, :-1] == value
        assert binomtest(int(changed[:, :-1][had].sum()), int(had.sum()), 1 / 9).pvalue > 0.001
    moves = [np.sum((genotypes[:, -1] == a) & (mutant[:, -1] == b)) for a in range(3) for b in range(3) if a != b]
    assert chisquare(moves).pvalue > 0.001
    assert binomtest(int(changed[:, -1].sum()), 60_000, 1 / 9).pvalue > 0.001
    numbers = np.bincount(changed.sum(1), minlength=10)[:4]
    assert numbers[0] / 60_000 == pytest.approx((8 / 9) ** 9, abs=0.01), "genes change independently"
