"""Rows of pairs against an independent computation on real networks' kind of output: logits, labels, nothing else."""

import numpy as np
import pytest
import scipy.stats
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score

from recombine.engine.class_predictions import ClassPredictions
from recombine.flips import comparison as module
from recombine.flips.comparison import Comparison, PairComparison, list_pairs, make_rows
from recombine.flips.semantics import Similarity

NAMES = ["left", "right", "few"]


@pytest.fixture(scope="module")
def comparison():
    """Three real classifiers of handwritten digits: two see half of the pixels, one saw few images."""
    images, labels = load_digits(return_X_y=True)
    train, test = slice(0, 1000), slice(1000, None)
    views = (np.s_[:, :40], np.s_[:, 24:], np.s_[:, :])
    logits = []
    for view, count in zip(views, (1000, 1000, 60), strict=True):
        model = LogisticRegression(max_iter=2000).fit(images[train][:count][view] / 16, labels[train][:count])
        logits.append(torch.from_numpy(model.decision_function(images[test][view] / 16)).float())
    return compare(NAMES, logits, torch.from_numpy(labels[test]).long())


def compare(names, logits, labels):
    """A comparison that has logits too."""
    return Comparison(names, [ClassPredictions.from_logits(each, labels) for each in logits], lambda i: logits[i])


def rows_of(comparison, pairs=None, **options):
    options = {"class_names": [str(i) for i in range(10)], "claimed": {}, "similarity": None, "legacy": False} | options
    pairs = list_pairs(3, "all", 0, False) if pairs is None else pairs
    return make_rows(comparison, pairs, {"dataset": "digits", "split": "test"}, **options)


def test_rows_equal_plain_numpy(comparison):
    rows = rows_of(comparison)
    assert [(r.cell["teacher"], r.cell["student"]) for r in rows] == [(a, b) for a in NAMES for b in NAMES if a != b]
    labels = comparison.labels
    for row in rows:
        z_t, z_s = (comparison.logits(NAMES.index(row.cell[role])).numpy() for role in ("teacher", "student"))
        t, s = z_t.argmax(1), z_s.argmax(1)
        positive, negative = (t == labels) & (s != labels), (t != labels) & (s == labels)
        q, lost = (np.bincount(labels[flips], minlength=10) for flips in (positive, negative))
        p_t, p_s = scipy.special.softmax(z_t, 1), scipy.special.softmax(z_s, 1)
        sure = np.where(p_t.max(1) > p_s.max(1), t, s)
        expected = {
            "rho_pos": 100 * positive.mean(),
            "rho_neg": 100 * negative.mean(),
            "accuracy_teacher": 100 * accuracy_score(labels, t),
            "accuracy_student": 100 * accuracy_score(labels, s),
            "accuracy_gap": 100 * (positive.mean() - negative.mean()),
            "oracle_accuracy": 100 * np.mean((t == labels) | (s == labels)),
            "ensemble_accuracy": 100 * accuracy_score(labels, sure),
            "probability_ensemble_accuracy": 100 * accuracy_score(labels, (p_t + p_s).argmax(1)),
            "agreement": 100 * np.mean(t == s),
            "positive_flips": q.sum(),
            "positive_flips_per_class_mean": q.mean(),
            "positive_flips_per_class_std": q.std(),
            "entropy_positive": scipy.stats.entropy(q),
            "negative_flips": lost.sum(),
            "negative_flips_per_class_mean": lost.mean(),
            "negative_flips_per_class_std": lost.std(),
            "entropy_negative": scipy.stats.entropy(lost),
            "entropy_uniform": np.log(10),
        }
        best = max(expected["accuracy_teacher"], expected["accuracy_student"])
        expected["ensemble_gain"] = expected["ensemble_accuracy"] - best
        assert {name: row.metrics[name] for name in expected} == pytest.approx(expected)
        assert row.series["positive_flips_per_class"] == q.tolist()
        assert row.series["negative_flips_per_class"] == lost.tolist()
        assert row.series["images_per_class"] == np.bincount(labels).tolist()
        assert row.series["classes_taught_most"][0] == str(q.argmax())
        half = np.sort(q)[::-1].cumsum() >= q.sum() / 2
        assert row.metrics["top50_classes"] == 1 + half.argmax()
        assert row.metrics["top50_share"] == pytest.approx(10 * (1 + half.argmax()))


def test_only_classes_with_images_count(comparison):
    """Networks with many outputs on a subset of the classes: absent classes neither dilute means nor entropy."""
    keep = torch.from_numpy(comparison.labels >= 7)
    wide = [torch.nn.functional.pad(comparison.logits(i)[keep], (0, 90), value=-1e3) for i in range(3)]
    row = rows_of(
        compare(NAMES, wide, torch.from_numpy(comparison.labels)[keep]), class_names=[f"class {i}" for i in range(100)]
    )[0]
    assert row.metrics["entropy_uniform"] == pytest.approx(np.log(3))
    assert len(row.series["positive_flips_per_class"]) == 3
    assert set(row.series["classes_taught_most"]) <= {"class 7", "class 8", "class 9"}
    total = row.metrics["positive_flips"]
    assert row.metrics["positive_flips_per_class_mean"] == pytest.approx(total / 3)


def test_equal_models_have_no_flips_and_no_entropy(comparison):
    twice = Comparison(["a", "b"], [comparison.predictions[0]] * 2)
    row = rows_of(twice, [PairComparison(0, 1)])[0]
    assert row.metrics["rho_pos"] == row.metrics["rho_neg"] == row.metrics["top50_classes"] == 0
    assert row.metrics["agreement"] == 100
    assert "entropy_positive" not in row.metrics
    assert "probability_ensemble_accuracy" not in row.metrics, "logits were not kept"


def test_similarity_and_claims_join_the_row(comparison):
    names = np.random.default_rng(0).normal(size=(10, 4))
    row = rows_of(
        comparison, [PairComparison(0, 1)], similarity=Similarity(names), claimed={"left": 91.5, "right": None}
    )[0]
    assert row.metrics["claimed_accuracy_teacher"] == 91.5
    assert "claimed_accuracy_student" not in row.metrics
    counts = np.array(row.series["positive_flips_per_class"])
    first, second = np.argsort(-counts, kind="stable")[:2]
    cosine = names[first] @ names[second] / np.linalg.norm(names[first]) / np.linalg.norm(names[second])
    assert row.metrics["top2_classes"] == 1, "one class holds 2 %, its nearest rival makes the pair"
    assert row.metrics["top2_similarity"] == pytest.approx(cosine)


def test_long_lists_keep_three_typical_series(comparison, monkeypatch):
    monkeypatch.setattr(module, "SERIES_LIMIT", 100)
    rows = rows_of(comparison)
    kept = [row for row in rows if "positive_flips_per_class" in row.series]
    gaps = [row.metrics["accuracy_gap"] for row in rows]
    assert len(kept) == 3
    found = sorted(row.metrics["accuracy_gap"] for row in kept)
    assert found == [min(gaps), pytest.approx(min(gaps, key=abs)), max(gaps)]


def test_drawn_pairs_follow_the_authors_generator():
    np.random.seed(7)
    teacher, student = np.random.choice(5, 2, replace=False)
    assert list_pairs(5, 1, 7, False) == [PairComparison(teacher, student)]
    many = list_pairs(4, 200, 0, False)
    assert len(many) == len(set(many)) == 12 and all(p.teacher != p.student for p in many)


def test_random_copies_take_either_side():
    assert list_pairs(2, "all", 0, True) == [
        PairComparison(0, 1),
        PairComparison(1, 0),
        PairComparison(0, 3, "student"),
        PairComparison(1, 2, "student"),
        PairComparison(2, 1, "teacher"),
        PairComparison(3, 0, "teacher"),
    ]
