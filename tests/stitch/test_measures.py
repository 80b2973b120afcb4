"""Metrics of offspring: calibration against torchmetrics and a grid, comparisons worked by hand."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from torch.nn import functional as F
from torchmetrics.classification import MulticlassCalibrationError

from recombine.stitch.comparison import REFERENCES, MeasuredNetworks, compare_to_references
from recombine.stitch.metrics import BINS, NetworkAnswers, network_metrics, temperature
from recombine.stitch.run_search import SearchMonitor
from recombine.stitch.tasks import Classification, mcnemar


def predictions(seed: int, sharp: float = 1.0, count: int = 200) -> NetworkAnswers:
    """Logits that are right by chance and `sharp` times as sure as they should be."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, 5, generator=generator)
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    return NetworkAnswers(logits * sharp, labels, Classification().count(logits[None], labels)[0])


def test_temperature_is_the_best_of_a_grid():
    one = predictions(0, sharp=3.0)
    found = temperature(one.logits, one.labels)
    grid = np.geomspace(0.05, 20, 2000)
    losses = [float(F.cross_entropy(one.logits.double() / t, one.labels)) for t in grid]
    assert found == pytest.approx(grid[int(np.argmin(losses))], rel=0.01)
    assert found == pytest.approx(3, rel=0.2)  # the logits were made three times too sure


def test_network_metrics_are_torchmetrics():
    search, test = predictions(1, 2.0), predictions(2, 2.0)
    facts = network_metrics(search, test, Classification())
    for purpose, one in (("search", search), ("test", test)):
        metric = MulticlassCalibrationError(5, n_bins=BINS)
        assert facts[f"{purpose}_ece"] == pytest.approx(100 * float(metric(one.logits.softmax(1), one.labels)))
        assert facts[f"{purpose}_accuracy"] == pytest.approx(
            100 * float((one.logits.argmax(1) == one.labels).double().mean())
        )
        assert facts[f"{purpose}_loss"] == pytest.approx(float(F.cross_entropy(one.logits, one.labels)), rel=1e-5)
    assert facts["temperature"] == temperature(search.logits, search.labels) != temperature(test.logits, test.labels)
    scaled = F.cross_entropy(test.logits.double() / facts["temperature"], test.labels)
    assert facts["test_loss_scaled"] == pytest.approx(float(scaled), rel=1e-5)
    assert facts["search_loss_scaled"] < facts["search_loss"] and facts["test_ece_scaled"] < facts["test_ece"]


def networks(points, outputs, on=None):
    """Networks of (search accuracy, test accuracy, cost): `on` by default one stitch each; answers to 1000 images."""
    accuracy, test, cost = (list(column) for column in zip(*points, strict=True))
    on = [[0]] * len(points) if on is None else on
    columns = {"search_accuracy": accuracy, "test_accuracy": test, "cost": cost, "output": outputs, "on": on}
    answers = {name: np.array([np.arange(1000) < 10 * value for value in columns[f"{name}_accuracy"]]) for name in SETS}
    counts = {name: answer[..., None] for name, answer in answers.items()}
    return MeasuredNetworks(columns, counts, Classification())


SETS = ("search", "test")
PARENTS = [(80, 79, 100), (90, 88, 300), (91, 90, 400)]


def test_comparison_by_hand():
    references = networks(PARENTS, [0, 1, 2], [[], [], []])
    front = networks(
        [(92, 89, 380), (90.8, 90.5, 200), (80, 81, 90), (70, 70, 50), *PARENTS],
        [2, 2, 0, 1, 0, 1, 2],
        [[0], [1], [2], [3], [], [], []],
    )
    facts, series = compare_to_references(front, references)
    assert (facts["front"], facts["offspring"]) == (7, 4)
    # search: the second is better and cheaper than B, the third as good as A and cheaper, the first beats the ensemble
    assert [facts[f"search_dominate_{who}"] for who in REFERENCES] == [1, 1, 1]
    # test: the first is worse than the ensemble there, the second beats B and the ensemble
    assert [facts[f"test_dominate_{who}"] for who in REFERENCES] == [1, 1, 1]
    assert facts["search_dominate_both_parents"] == 0
    # answers are nested: of 1000 images the second is right on 25 more than B and wrong on none, on 5 more than both
    assert series["front_test_gain_b"][1] == pytest.approx(2.5)
    assert series["front_test_p_b"][1] == pytest.approx(0.5**25) and series["front_test_p_ensemble"][1] == 0.5**5
    assert series["front_test_p_ensemble"][0] == series["front_test_p_ensemble"][-1] == 1
    # by Holm: three offspring are cheaper than B, of which the second is surely better; four than the ensemble
    assert facts["test_dominate_b_significant"] == 1 and 3 * 0.5**25 < 0.05
    assert facts["test_dominate_ensemble_significant"] == 0 and 4 * 0.5**5 > 0.05
    # box from (80 %, 400) to (100 %, 0); the third and fourth points are at or below 80 %
    area = (92 - 80) * (400 - 380) + (90.8 - 80) * (380 - 200)
    assert facts["search_hypervolume"] == pytest.approx(100 * area / (20 * 400))
    assert facts["search_hypervolume_references"] == pytest.approx(100 * (10 * 100) / (20 * 400))
    assert facts["chosen_accuracy"] == 89 and facts["chosen_gap"] == 3 and facts["chosen_cost"] == 95
    # ensembles within 0.3 points of 91 %: the first and the second; the second is cheaper
    assert facts["cheap_ensemble_cost"] == 50 and facts["cheap_ensemble_accuracy"] == 90.5


def test_parents_count_for_nothing():
    """A front of parents alone dominates none, and no offspring is chosen, though A dominates B and the ensemble."""
    references = networks([(91, 91, 100), (90, 88, 300), (91, 90, 400)], [0, 1, 2], [[], [], []])
    facts, _ = compare_to_references(references, references)
    assert facts["offspring"] == 0 and not any(value for key, value in facts.items() if "dominate" in key)
    assert "chosen_accuracy" not in facts and "cheap_ensemble_cost" not in facts
    assert facts["test_hypervolume"] == facts["test_hypervolume_references"]


def test_mcnemar_is_scipys():
    answers = np.random.default_rng(0).random((6, 200)) < 0.7
    for one, p_value in zip(answers, mcnemar(answers, answers[0]), strict=True):
        gained, lost = int((one & ~answers[0]).sum()), int((~one & answers[0]).sum())
        expected = binomtest(gained, gained + lost, alternative="greater").pvalue if gained + lost else 1.0
        assert p_value == pytest.approx(expected)


def test_where_the_references_make_no_mistake_there_is_no_volume():
    class Perfect:
        net, performance = SimpleNamespace(genotype=np.zeros(3, np.int8)), "accuracy"

        def __call__(self, genotypes):
            return SimpleNamespace(objectives=np.column_stack([-np.ones(len(genotypes)), np.full(len(genotypes), 1e6)]))

    monitor = SearchMonitor(SimpleNamespace(main=False), Perfect(), 10)
    assert monitor._hypervolume(np.array([[-1.0, 5e5]])) == 0
    monitor.box, monitor.corner = 2e6, np.array([-0.5, 1e6])
    assert monitor._hypervolume(np.array([[-1.0, 5e5]])) == pytest.approx(100 * 0.5 * 5e5 / 2e6)
