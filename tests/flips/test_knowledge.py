"""The pair arithmetic against slow twins, scikit-learn, SciPy and the values of the paper's specification."""

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score

from recombine.flips import knowledge

GOLDEN = np.array([5, 3, 1, 1, 0])


@st.composite
def comparisons(draw):
    """Random predictions [N, n] with labels [n], classes, and confidences drawn from few values so that ties occur."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    models, images, classes = draw(st.integers(2, 5)), draw(st.integers(1, 60)), draw(st.integers(2, 7))
    labels = rng.integers(0, classes, images)
    noise = rng.integers(0, classes, (models, images))
    predictions = np.where(rng.random((models, images)) < 0.6, labels, noise)
    return predictions, labels, classes, rng.integers(0, 4, (models, images)) / 4


def test_golden_entropy():
    assert knowledge.entropy(GOLDEN) == pytest.approx(1.168282, abs=5e-7)


def test_entropy_against_scipy():
    counts = np.random.default_rng(1).integers(0, 50, (4, 6, 100))
    np.testing.assert_allclose(knowledge.entropy(counts), scipy.stats.entropy(counts, axis=-1), rtol=1e-12)
    assert knowledge.entropy(np.full(1000, 3)) == pytest.approx(np.log(1000))
    assert knowledge.entropy([0, 7, 0]) == 0
    assert np.isnan(knowledge.entropy([0, 0, 0])), "no flips have no distribution"


@settings(max_examples=60, deadline=None)
@given(comparisons())
def test_pairs_against_a_loop(case):
    """Ten lines of plain counting, pair by pair, are the definition; the matrices must equal them exactly."""
    predictions, labels, classes, confidence = case
    right = np.asarray(predictions) == np.asarray(labels)
    flips, per_class = knowledge.positive_flips(right), knowledge.flips_per_class(right, labels, classes)
    agreement, oracle = knowledge.agreement(predictions), knowledge.oracle_accuracy(right)
    ensemble = knowledge.confident_ensemble_accuracy(right, confidence)
    for t, teacher in enumerate(predictions):
        for s, student in enumerate(predictions):
            flipped = [y for a, b, y in zip(teacher, student, labels, strict=True) if a == y and b != y]
            assert flips[t, s] == len(flipped)
            assert per_class[t, s].tolist() == [flipped.count(c) for c in range(classes)]
            assert agreement[t, s] == pytest.approx(100 * accuracy_score(teacher, student))
            either = [y in (a, b) for a, b, y in zip(teacher, student, labels, strict=True)]
            assert oracle[t, s] == pytest.approx(100 * np.mean(either))
            chosen = [
                a if p > q else b for a, b, p, q in zip(teacher, student, confidence[t], confidence[s], strict=True)
            ]
            assert ensemble[t, s] == pytest.approx(100 * accuracy_score(labels, chosen))


@settings(max_examples=60, deadline=None)
@given(comparisons())
def test_identities(case):
    """rho_pos - rho_neg is the accuracy gap; nobody teaches itself; classes sum to the whole; the oracle bounds all."""
    predictions, labels, classes, confidence = case
    right = np.asarray(predictions) == np.asarray(labels)
    accuracy, flips = knowledge.accuracy(right), knowledge.positive_flips(right)
    rho = 100 * flips / len(labels)
    np.testing.assert_allclose(rho - rho.T, accuracy[:, None] - accuracy[None, :], atol=1e-9)
    assert (np.diag(flips) == 0).all()
    assert (knowledge.flips_per_class(right, labels, classes).sum(-1) == flips).all()
    oracle = knowledge.oracle_accuracy(right)
    np.testing.assert_allclose(oracle, oracle.T)
    assert (oracle >= np.maximum(accuracy[:, None], accuracy[None, :]) - 1e-9).all()
    assert (knowledge.confident_ensemble_accuracy(right, confidence) <= oracle + 1e-9).all()


def test_counts_stay_exact_beyond_float32(monkeypatch):
    monkeypatch.setattr(knowledge, "EXACT_IN_FLOAT32", 10)
    right = np.random.default_rng(3).random((3, 64)) < 0.5
    expected = [[int((a & ~b).sum()) for b in right] for a in right]
    assert knowledge.positive_flips(right).tolist() == expected


def test_confidence_ties_go_to_the_student():
    right = np.array([[True, False], [False, True]])
    even = np.full((2, 2), 0.5)
    assert knowledge.confident_ensemble_accuracy(right, even).tolist() == [[50.0, 50.0]] * 2
    sure = np.array([[0.9, 0.1], [0.5, 0.5]])
    assert knowledge.confident_ensemble_accuracy(right, sure)[0, 1] == 100.0


def test_probability_ensemble_against_numpy():
    rng = np.random.default_rng(4)
    logits = rng.normal(size=(2, 300, 6)).astype(np.float32)
    labels = rng.integers(0, 6, 300)
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = 100 * accuracy_score(labels, probabilities.mean(0).argmax(-1))
    teacher, student = torch.from_numpy(logits)
    for chunk in (7, 8192):
        found = knowledge.probability_ensemble_accuracy(teacher, student, torch.from_numpy(labels), chunk)
        assert found == pytest.approx(expected)
