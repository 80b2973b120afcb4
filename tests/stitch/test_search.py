"""Every algorithm on a problem with a known front: what it finds, asks, spends and repeats."""

from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from recombine.core.errors import ConfigError, RecombineError
from recombine.run.config import build
from recombine.stitch.pareto import front, hypervolume
from recombine.stitch.search.archive import stitched
from recombine.stitch.search.ga import FamilialGa
from recombine.stitch.search.gomea import Gomea, LkGomea
from recombine.stitch.search.nsga2 import Nsga2
from recombine.stitch.search.random import RandomSearch
from recombine.stitch.search.space import Budget, Evaluations, phenotypes
from recombine.stitch.search.sweep import SingleStitchSweep
from tests.stitch.lotz import evaluate, known_front, reference, space

EVOLVING = [FamilialGa, Nsga2, Gomea, LkGomea]
ALL = [RandomSearch, *EVOLVING]
FILES = sorted((Path(__file__).parents[2] / "config/stitch/search").glob("*.yaml"))


class Recorder:
    """Evaluates, and remembers every batch."""

    def __init__(self):
        self.batches = []

    def __call__(self, genotypes):
        assert genotypes.dtype == np.int8 and len(genotypes) > 0
        self.batches.append(genotypes.copy())
        return evaluate(genotypes)

    @property
    def genotypes(self):
        return np.concatenate(self.batches)


def searched(kind, *, bits=10, budget=600, unit="requests", answer=None, on_generation=None, **options):
    """The archive, the budget after the search, and what was asked."""
    answer, budget = answer or Recorder(), Budget(budget, unit)
    archive = kind(space(bits), budget, **{"population": 24, **options}).run(answer, on_generation)
    return archive, budget, answer


def best(archive):
    return archive.members.objectives[front(archive.members.objectives)]


@pytest.mark.parametrize("kind", ALL)
def test_the_known_front_is_found(kind):
    archive, _, asked = searched(kind, bits=6, budget=2500, population=32, seed=1)
    assert best(archive) == pytest.approx(known_front(6))
    everyone = np.array(np.meshgrid(*[range(size) for size in space(6).alphabet])).reshape(7, -1).T.astype(np.int8)
    objectives = evaluate(everyone).objectives
    assert objectives[front(objectives)] == pytest.approx(known_front(6)), "the front is known rightly"
    assert asked.genotypes.min() == 0 and (asked.genotypes < space(6).alphabet).all()


@pytest.mark.parametrize("kind", EVOLVING)
def test_evolution_beats_random_search(kind):
    for seed in range(3):
        options = {"bits": 24, "budget": 2500, "population": 48, "seed": seed}
        ours, chance = (
            hypervolume(searched(each, **options)[0].members.objectives, reference(24)) for each in (kind, RandomSearch)
        )
        assert ours > 1.2 * chance


@pytest.mark.parametrize("kind", ALL)
def test_the_same_seed_asks_the_same(kind):
    runs = [searched(kind, seed=seed)[2].batches for seed in (4, 4, 5)]
    assert all(np.array_equal(one, other) for one, other in zip(runs[0], runs[1], strict=True))
    assert not np.array_equal(runs[0][-1], runs[2][-1])
    assert not np.array_equal(np.concatenate(runs[0])[-100:], np.concatenate(runs[2])[-100:])


@pytest.mark.parametrize("unit", ["requests", "unique"])
@pytest.mark.parametrize("kind", ALL)
def test_an_interrupted_search_takes_the_same_course(kind, unit):
    """Its memo answers the first requests; steering and the budget go by the search and not by the memo."""
    options = {"seed": 2, "unit": unit, "budget": 600 if unit == "requests" else 60}
    whole, spent, asked = searched(kind, **options)
    memo, measured = {}, 0

    def remembering(genotypes):
        nonlocal measured
        active = evaluate(genotypes).active
        rows = []
        for genotype, key in zip(genotypes, phenotypes(genotypes, active), strict=True):
            if key.tobytes() not in memo:
                if measured == 50:
                    raise InterruptedError
                measured += 1
                memo[key.tobytes()] = [field[0] for field in evaluate(genotype[None])]
            rows.append(memo[key.tobytes()])
        return Evaluations(*map(np.stack, zip(*rows, strict=True)))

    with pytest.raises(InterruptedError):
        searched(kind, answer=remembering, **options)
    measured = -10_000
    resumed = Recorder()
    again, spent_again, _ = searched(kind, answer=lambda g: (resumed(g), remembering(g))[1], **options)
    assert len(memo) == 10_050 + measured, "nothing is measured twice"
    assert np.array_equal(resumed.genotypes, asked.genotypes)
    assert all(np.array_equal(one, other) for one, other in zip(again.members, whole.members, strict=True))
    assert (spent_again.requests, spent_again.unique) == (spent.requests, spent.unique)


@pytest.mark.parametrize("total", [1, 23, 24, 25, 130, 401])
@pytest.mark.parametrize("kind", [*ALL, SingleStitchSweep])
def test_the_budget_is_spent_and_never_exceeded(kind, total):
    options = {} if kind is not SingleStitchSweep else {"bits": 400}
    asked, budget = Recorder(), Budget(total)
    (kind(space(options.get("bits", 10)), budget) if options else kind(space(10), budget, population=24)).run(asked)
    assert len(asked.genotypes) == budget.requests == total and budget.remaining == 0
    assert budget.unique == len(np.unique(phenotypes(asked.genotypes, evaluate(asked.genotypes).active), axis=0))


@pytest.mark.parametrize("kind", EVOLVING)
@pytest.mark.parametrize(("ends", "low", "high"), [(2, 12, 100), (12, 150, 200)])
def test_blocks_come_first_until_half_of_the_budget_or_until_all_are_known(kind, ends, low, high):
    """2 bits and the output make 12 genotypes, which half of the budget would be wasted on; 12 bits make 12,288."""

    class Distinct(Recorder):
        def __call__(self, genotypes):
            return super().__call__(genotypes)._replace(active=np.ones(genotypes.shape, bool))

    coarse, asked, budget = np.append(np.arange(80) < ends, True), Distinct(), Budget(300)
    kind(space(80, coarse=coarse), budget, population=24, seed=2).run(asked)
    assert low <= asked.genotypes[:, ~coarse].any(1).argmax() <= high and budget.requests == 300


@pytest.mark.parametrize("kind", ALL)
def test_a_budget_of_phenotypes(kind):
    _, budget, asked = searched(kind, unit="unique", budget=70)
    assert budget.unique == 70 <= budget.requests == len(asked.genotypes) and budget.remaining == 0


@pytest.mark.parametrize("kind", ALL)
def test_a_search_that_finds_nothing_new_ends(kind):
    """Of 4 bits there are 33 networks, fewer than the budget asks for."""
    _, budget, asked = searched(kind, bits=4, unit="unique", budget=150)
    networks = np.unique(phenotypes(asked.genotypes, evaluate(asked.genotypes).active), axis=0)
    assert budget.unique == len(networks) < 60 and budget.requests <= len(networks) * 150


@pytest.mark.parametrize("kind", ALL)
def test_what_is_logged_after_each_batch(kind):
    seen = []
    archive, budget, asked = searched(kind, on_generation=lambda a, b: seen.append((len(a), b.requests)))
    assert [requests for _, requests in seen] == np.cumsum([len(batch) for batch in asked.batches]).tolist()
    assert seen[-1] == (len(archive), budget.requests)


@pytest.mark.parametrize("kind", ALL)
def test_the_archive_is_the_front_of_all_that_was_asked(kind):
    archive, _, asked = searched(kind, **({} if kind in (RandomSearch, Nsga2) else {"steering": 0.0}))
    objectives = evaluate(asked.genotypes).objectives
    assert np.array_equal(best(archive), objectives[front(objectives)])
    members, truth = archive.members, evaluate(archive.members.genotypes)
    assert np.array_equal(members.objectives, truth.objectives) and np.array_equal(members.accuracy, truth.accuracy)


@pytest.mark.parametrize("kind", [FamilialGa, Gomea, LkGomea])
def test_steering_drops_what_is_less_accurate(kind, monkeypatch):
    """All of the budget are new phenotypes here, so the threshold ends at `steering`; parents are not steered, nor are
    single stitches at the start, which are left out."""
    monkeypatch.setattr("recombine.stitch.search.base.SINGLE_STITCHES", 0)
    archive, _, asked = searched(kind, unit="unique", budget=70, steering=0.7)
    assert archive.members.accuracy[stitched(archive.members)].min() >= 0.7
    assert not stitched(archive.members).all()
    free, _, asked_free = searched(kind, unit="unique", budget=70, steering=0.0)
    assert free.members.accuracy.min() < 0.5
    if kind is FamilialGa:  # GOMEA asks for what it does not accept, and its extreme clusters are not steered
        steered, unsteered = (evaluate(each.genotypes[-100:]).accuracy.mean() for each in (asked, asked_free))
        assert steered > unsteered + 0.1


def test_the_threshold_by_hand():
    """T = 0.5 * 3 / 8: four requests, of which two are the same network."""
    search = FamilialGa(space(4), Budget(8), steering=0.5)
    genotypes = np.array([[0, 1, 0, 1, 0], [0, 0, 1, 1, 0], [0, 0, 0, 0, 2], [1, 1, 1, 1, 2]], np.int8)
    assert search.threshold == 0
    search.budget.spend(genotypes, evaluate(genotypes).active)
    assert evaluate(genotypes).active[:2].tolist() == [[True, False, False, True, True]] * 2
    assert (search.budget.requests, search.budget.unique, search.budget.remaining) == (4, 3, 4)
    assert search.threshold == 0.5 * 3 / 8


@pytest.mark.parametrize("kind", ALL)
def test_offspring_that_fail_are_the_worst_and_not_kept(kind):
    def failing(genotypes):
        found = evaluate(genotypes)
        found.objectives[genotypes[:, -1] == 0] = [np.inf, np.nan]
        return found

    archive, budget, _ = searched(kind, bits=6, budget=1500, answer=failing)
    assert budget.requests == 1500 and np.isfinite(archive.members.objectives).all()
    assert best(archive) == pytest.approx(known_front(6)[::2]), "what is left with output 2"


def test_a_search_whose_first_offspring_all_fail_says_so():
    def failing(genotypes):
        return evaluate(genotypes)._replace(objectives=np.full((len(genotypes), 2), np.nan))

    with pytest.raises(RecombineError, match="not finite"):
        searched(FamilialGa, answer=failing)


@pytest.mark.parametrize("kind", EVOLVING)
def test_no_search_knows_less_than_the_sweep_where_that_takes_half_of_its_budget(kind):
    swept = SingleStitchSweep(space(10), Budget(200)).run(evaluate)
    archive, _, asked = searched(kind, budget=2 * 20)
    networks = {tuple(genotype) for genotype in asked.genotypes.tolist()}
    assert {tuple(genotype) for genotype in swept.members.genotypes.tolist()} <= networks
    corner = reference(10)
    assert hypervolume(archive.members.objectives, corner) >= hypervolume(swept.members.objectives, corner)


def test_the_sweep_of_two_pairs():
    """A1, B1, A2, B2, output: A, B and the ensemble; shared prefixes of A, of B; A into B, B into A."""
    asked = Recorder()
    SingleStitchSweep(space(4), Budget(100)).run(asked)
    assert ["".join(map(str, genotype)) for genotype in asked.genotypes] == [
        *("00000", "00001", "00002"),
        *("01002", "00012"),
        *("10002", "00102"),
        *("01001", "00011"),
        *("10000", "00100"),
    ]
    asked = Recorder()
    SingleStitchSweep(space(16), Budget(7)).run(asked)
    assert len(asked.genotypes) == 7


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_config_files_build(path):
    assert path.read_text().startswith("# ")
    cfg = OmegaConf.load(path)
    search = build(cfg, space=space(10), budget=Budget(40), seed=3)
    assert search.name == cfg.name == path.stem
    assert len(search.run(evaluate)) > 0
    if "population" in cfg:
        assert search.size == cfg.population


def test_nothing_to_search_is_refused():
    with pytest.raises(ConfigError, match="no layers"):
        FamilialGa(space(0), Budget(5))
