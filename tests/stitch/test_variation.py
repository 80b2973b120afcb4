"""What the algorithms do with their individuals, one decision at a time."""

import numpy as np
import pytest
from pymoo.core.population import Population
from scipy.stats import binomtest

from recombine.stitch.search.acceptance import ObjectiveScale
from recombine.stitch.search.ga import FamilialGa
from recombine.stitch.search.gomea import Generation, Gomea, LkGomea, single_objectives
from recombine.stitch.search.nsga2 import _SamePhenotype
from recombine.stitch.search.space import Budget, Individuals, phenotypes
from tests.stitch.lotz import evaluate, space


def individuals(*texts):
    """Evaluated genotypes from texts such as 11002."""
    genotypes = np.array([[int(gene) for gene in text] for text in texts], np.int8)
    return Individuals(genotypes, *evaluate(genotypes)[:3], np.zeros(len(texts), bool))


def text(genotype):
    return "".join(map(str, genotype))


def test_a_child_replaces_a_random_one_of_the_parents_it_is_not_worse_than():
    child, weights, replaced = individuals("11000").take(0), np.array([[1.0, 0], [1, 0]]), []
    for seed in range(200):
        search, population = FamilialGa(space(4), Budget(9), seed=seed, population=2), individuals("10000", "11001")
        search._compete(child, population, np.array([0, 1]), weights, ObjectiveScale.of(population.objectives))
        replaced.append([text(genotype) for genotype in population.genotypes].index("11000"))
    assert binomtest(sum(replaced), 200).pvalue > 0.001, "worse than neither in accuracy: either goes"
    population = individuals("11100", "11001")
    search._compete(child, population, np.array([0, 1]), weights, ObjectiveScale.of(population.objectives))
    assert text(population.genotypes[1]) == "11000", "less accurate than the first, so only the second goes"
    population = individuals("11100", "11110")
    search._compete(child, population, np.array([0, 1]), weights, ObjectiveScale.of(population.objectives))
    assert [text(genotype) for genotype in population.genotypes] == ["11100", "11110"]


def test_offspring_of_a_known_phenotype_are_dropped():
    rng = np.random.default_rng(0)
    genotypes = rng.integers(0, space(6).alphabet, (80, 7)).astype(np.int8)
    known, new = Population.new(X=genotypes[:30]), Population.new(X=genotypes[30:])
    active = evaluate(genotypes).active
    known.set("active", active[:30])
    keys = [key.tobytes() for key in phenotypes(genotypes, active)]
    kept = {text(one.X) for one in _SamePhenotype().do(new, known, Population.create())}
    assert kept == {text(genotypes[i]) for i in range(30, 80) if keys[i] not in keys[:30]}
    assert 0 < len(kept) < 50
    rest = Population.new(X=np.repeat(genotypes[:3], 2, axis=0))
    assert [text(one.X) for one in _SamePhenotype().do(rest)] == [text(genotype) for genotype in genotypes[:3]]
    assert len(_SamePhenotype().do(rest, Population.new(X=genotypes[1:2]))) == 2, "not evaluated: by all genes"


def test_members_of_extreme_clusters_look_at_one_objective():
    """Five groups of ten along a front, so each cluster has the twenty nearest: its own and the one to the left (the
    first, the one to the right). The first group is in the extreme cluster and its neighbour's, and so on.
    """
    places = np.array([0, 1, 3, 7, 15]) / 15
    scaled = np.stack([places, 1 - places], 1).repeat(10, axis=0) + np.random.default_rng(0).random((50, 2)) / 1000
    drawn = np.array([single_objectives(scaled, np.random.default_rng(seed)) for seed in range(60)])
    drawn = drawn.reshape(60, 5, 10)
    for group, (objective, share) in enumerate([(0, 1 / 2), (0, 1 / 3), (-1, 1), (1, 1 / 2), (1, 1)]):
        assert set(np.unique(drawn[:, group])) == ({-1, objective} if share < 1 else {objective})
        assert binomtest(int((drawn[:, group] == objective).sum()), 600, share).pvalue > 0.001


@pytest.mark.parametrize("count", [2, 3, 6])
def test_clusters_of_few_or_equal_individuals(count):
    for scaled in (np.zeros((count, 2)), np.random.default_rng(0).random((count, 2))):
        assert single_objectives(scaled, np.random.default_rng(0)).shape == (count,)


def test_a_neighbourhood_is_the_nearest():
    genotypes = np.random.default_rng(0).integers(0, 2, (96, 11)).astype(np.int8)
    sizes = []
    for own, model in zip(genotypes, LkGomea(space(10), Budget(9), population=96).models(genotypes), strict=True):
        distance, near = (genotypes != own).sum(1), (model.donors != own).sum(1)
        assert near.tolist() == np.sort(distance)[: len(near)].tolist()
        assert model.subsets.shape == (20, 11)
        sizes.append(len(near))
    assert 32 <= min(sizes) < 36 and 90 < max(sizes) <= 96, "96 / u with u between 1 and 3"
    assert np.median(sizes) == pytest.approx(48, abs=8)


def a_generation(population, archived, seed=0, **options):
    """The first individual's procedure in a generation that accepts by the first objective."""
    search = Gomea(space(4), Budget(1000), seed=seed, population=len(population.accuracy), steering=0.0)
    search.archive.add(archived)
    vectors = np.tile([1.0, 0.0], (search.size, 1))
    generation = Generation(
        search, population, vectors, np.zeros(search.size, int), search.models(population.genotypes.copy())
    )
    generation.single[:] = 0
    return generation


def answered(procedure):
    """All genotypes that a procedure asks for, each answered."""
    asked, trial = [], next(procedure)
    try:
        while True:
            asked.append(text(trial))
            trial = procedure.send(individuals(asked[-1]).take(0))
    except StopIteration:
        return asked


def test_mixing_takes_from_donors_and_keeps_what_is_not_worse():
    start = ["10000", "01000", "00100", "00000"]
    for seed in range(20):
        population = individuals(*start)
        asked = answered(a_generation(population, individuals("00000").take([]), seed).improve(0))
        assert [text(genotype) for genotype in population.genotypes[1:]] == start[1:]
        end = population.take(0)
        assert end.objectives[0] <= individuals("10000").objectives[0, 0]
        assert np.array_equal(end.objectives, individuals(text(end.genotypes)).objectives[0])
        assert 0 < len(asked) <= 8, "at most one for each subset; there is no archive to be forced towards"
        assert {each[3:] for each in asked} == {"00"}, "no donor has anything else there"


def test_extreme_clusters_are_not_steered():
    population = individuals("11110", "00000")
    generation = a_generation(population, population)
    costly, cheap = population.take(0), population.take(1)
    generation.weights[:] = [0, 1]
    for single, threshold, accepted in ((-1, 0.0, True), (-1, 0.5, False), (1, 0.5, True), (0, 0.0, False)):
        generation.single[0], generation.search.steering = single, threshold
        generation.search.budget = Budget(1)
        generation.search.budget.spend(cheap.genotypes[None], cheap.active[None])
        assert generation.accepts(0, cheap, costly) == accepted


def test_what_cannot_be_mixed_is_forced_towards_the_archive():
    """All genotypes are equal, so mixing asks for nothing; the first accepted change towards the archive is the end."""
    for seed in range(10):
        population = individuals("10000", "10000")
        generation = a_generation(population, individuals("11102"), seed)
        asked = answered(generation.improve(0))
        assert text(population.genotypes[0]) == asked[-1] != "10000"
        assert all(mixed in ("1", both) for mixed, both in zip(asked[-1][0], "1", strict=True))
        assert individuals(asked[-1]).accuracy[0] >= individuals("10000").accuracy[0]
        assert all(individuals(each).accuracy[0] < individuals("10000").accuracy[0] for each in asked[:-1])


def test_what_cannot_be_forced_is_replaced_from_the_archive():
    """Every change towards the cheaper member loses accuracy, so in the end the member itself is taken."""
    population = individuals("11110", "11110")
    asked = answered(a_generation(population, individuals("00000")).improve(0))
    assert len(asked) > 3 and text(population.genotypes[0]) == "00000"


def test_stagnation_is_ended_by_force():
    """Neutral changes go on for 1 + floor(log2 4) = 3 generations, then a change towards the archive comes on top."""
    population, counts = individuals("01000", "00100", "01100", "00010"), []
    generation = a_generation(population, individuals("11102"))
    generation.single[:] = -1
    generation.weights[:] = 0
    for _ in range(8):
        for _ in answered(generation.improve(0)):
            pass
        counts.append(int(generation.stagnation[0]))
    assert counts == [1, 2, 3, 0, 1, 2, 3, 0]
