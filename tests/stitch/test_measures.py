"""Metrics of offspring: calibration against torchmetrics and a grid, comparisons worked by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torchmetrics.classification import MulticlassCalibrationError

from recombine.engine.evaluate import Predictions
from recombine.stitch.metrics import BINS, compare_to_references, network_metrics, temperature


def said(seed: int, sharp: float = 1.0, count: int = 200) -> Predictions:
    """Logits that are right by chance and `sharp` times as sure as they should be."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, 5, generator=generator)
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    return Predictions(logits * sharp, labels, torch.arange(count))


def test_temperature_is_the_best_of_a_grid():
    one = said(0, sharp=3.0)
    found = temperature(one.logits, one.labels)
    grid = np.geomspace(0.05, 20, 2000)
    losses = [float(F.cross_entropy(one.logits.double() / t, one.labels)) for t in grid]
    assert found == pytest.approx(grid[int(np.argmin(losses))], rel=0.01)
    assert found == pytest.approx(3, rel=0.2)  # the logits were made three times too sure


def test_network_metrics_are_torchmetrics():
    search, test = said(1, 2.0), said(2, 2.0)
    facts = network_metrics(search, test)
    for purpose, one in (("search", search), ("test", test)):
        metric = MulticlassCalibrationError(5, n_bins=BINS)
        assert facts[f"{purpose}_ece"] == pytest.approx(100 * float(metric(one.logits.softmax(1), one.labels)))
        assert facts[f"{purpose}_accuracy"] == pytest.approx(
            100 * float((one.logits.argmax(1) == one.labels).double().mean())
        )
        assert facts[f"{purpose}_loss"] == pytest.approx(float(F.cross_entropy(one.logits, one.labels)), rel=1e-5)
    scaled = F.cross_entropy(test.logits.double() / facts["temperature"], test.labels)
    assert facts["test_loss_scaled"] == pytest.approx(float(scaled), rel=1e-5)
    assert facts["search_loss_scaled"] < facts["search_loss"] and facts["test_ece_scaled"] < facts["test_ece"]


def columns(points, outputs):
    accuracy, test, cost = zip(*points, strict=True)
    return {"search_accuracy": list(accuracy), "test_accuracy": list(test), "cost": list(cost), "output": outputs}


def test_comparison_by_hand():
    references = columns([(80, 79, 100), (90, 88, 300), (91, 90, 400)], [0, 1, 2])
    front = columns([(92, 89, 380), (90.8, 90.5, 200), (80, 81, 90), (70, 70, 50)], [2, 2, 0, 1])
    facts = compare_to_references(front, references)
    assert facts["front"] == 4
    # search: the second is better and cheaper than B, the third as good as A and cheaper, the first beats the ensemble
    assert [facts[f"search_dominate_{who}"] for who in ("a", "b", "ensemble")] == [1, 1, 1]
    # test: the first is worse than the ensemble there, the second beats B and the ensemble
    assert [facts[f"test_dominate_{who}"] for who in ("a", "b", "ensemble")] == [1, 1, 1]
    assert facts["search_dominate_both_parents"] == 0
    # box from (80 %, 400) to (100 %, 0); the third and fourth points are at or below 80 %
    area = (92 - 80) * (400 - 380) + (90.8 - 80) * (380 - 200)
    assert facts["search_hypervolume"] == pytest.approx(100 * area / (20 * 400))
    assert facts["search_hypervolume_references"] == pytest.approx(100 * (10 * 100) / (20 * 400))
    assert facts["chosen_accuracy"] == 89 and facts["chosen_gap"] == 3 and facts["chosen_cost"] == 95
    # ensembles within 0.3 points of 91 %: the first and the second; the second is cheaper
    assert facts["cheap_ensemble_cost"] == 50 and facts["cheap_ensemble_accuracy"] == 90.5


def test_no_cheap_ensemble_is_no_number():
    references = columns([(80, 79, 100), (90, 88, 300), (91, 90, 400)], [0, 1, 2])
    assert "cheap_ensemble_cost" not in compare_to_references(columns([(90, 89, 380)], [2]), references)
