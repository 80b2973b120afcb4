"""Rows of real classifiers on real digits, measured by plain NumPy: nothing of the report makes its own input."""

from __future__ import annotations

import warnings
from itertools import permutations

import numpy as np
import pytest
from scipy.stats import entropy
from sklearn.datasets import load_digits
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import ExtraTreesClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.model_selection import train_test_split
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.tree import DecisionTreeClassifier

from recombine.cli.entries import register_papers
from recombine.core.types import Row

register_papers()

CLASSIFIERS = {
    "naive_bayes": GaussianNB(),
    "nearest_1": KNeighborsClassifier(1),
    "nearest_15": KNeighborsClassifier(15),
    "tree_6": DecisionTreeClassifier(max_depth=6, random_state=0),
    "tree_12": DecisionTreeClassifier(max_depth=12, random_state=0),
    "forest": RandomForestClassifier(50, random_state=0),
    "logistic": LogisticRegression(C=0.1, max_iter=1000),
    "discriminant": LinearDiscriminantAnalysis(),
    "extra_trees": ExtraTreesClassifier(20, random_state=0),
}
PROVENANCE = {
    "command": "python main_flips.py dataset=digits",
    "commit": "0123abc",
    "device": "cpu",
    "seconds": 1.5,
    "versions": {"python": "3.11", "torch": "2.15"},
    "config": {"dataset": {"name": "digits"}, "batch_size": 128},
}


@pytest.fixture(scope="session")
def digits():
    images, labels = load_digits(return_X_y=True)
    return train_test_split(images / 16, labels, test_size=0.5, random_state=0, stratify=labels)


@pytest.fixture(scope="session")
def chances(digits):
    """name -> class probabilities [n, 10] on the test images."""
    train, test, train_labels, _ = digits
    return {name: net.fit(train, train_labels).predict_proba(test) for name, net in CLASSIFIERS.items()}


@pytest.fixture(scope="session")
def flip_rows(digits, chances):
    """One row an ordered pair, as main_flips.py leaves them."""
    right = {name: chance.argmax(1) == digits[3] for name, chance in chances.items()}
    labels = digits[3]
    per_class = np.bincount(labels)
    rows = []
    for teacher, student in permutations(right, 2):
        flips = right[teacher] & ~right[student]
        counts = np.bincount(labels[flips], minlength=10)
        accuracies = 100 * right[teacher].mean(), 100 * right[student].mean()
        metrics = {
            "rho_pos": 100 * flips.mean(),
            "rho_neg": 100 * (right[student] & ~right[teacher]).mean(),
            "accuracy_teacher": accuracies[0],
            "accuracy_student": accuracies[1],
            "accuracy_gap": accuracies[0] - accuracies[1],
            "entropy_positive": float(entropy(counts)),
            "entropy_uniform": float(np.log(10)),
            "ensemble_accuracy": 100 * ((chances[teacher] + chances[student]).argmax(1) == labels).mean(),
            "oracle_accuracy": 100 * (right[teacher] | right[student]).mean(),
        }
        series = {"positive_flips_per_class": counts.tolist(), "images_per_class": per_class.tolist()}
        cell = {"teacher": teacher, "student": student, "baseline": "none", "dataset": "digits", "split": "test"}
        rows.append(Row(cell, metrics, series, entry="flips", run="digits-1234abcd", provenance=PROVENANCE))
    return rows


@pytest.fixture(scope="session")
def pretrain_rows(digits):
    """Learning curves of two real classifiers trained epoch by epoch with three seeds, and two runs that failed."""
    train, test, train_labels, test_labels = digits
    rows = []
    for model, make in {
        "mlp_32": lambda seed: MLPClassifier(
            [32], learning_rate_init=0.01, max_iter=1, warm_start=True, random_state=seed
        ),
        "linear": lambda seed: SGDClassifier(loss="log_loss", alpha=0.01, random_state=seed),
    }.items():
        for seed in range(3):
            net, losses, accuracies = make(seed), [], []
            for _ in range(8):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    net.partial_fit(train, train_labels, classes=np.unique(train_labels))
                chance = net.predict_proba(train)[np.arange(len(train)), train_labels]
                losses.append(float(-np.log(chance + 1e-9).mean()))
                accuracies.append(100 * net.score(test, test_labels))
            rows.append(
                Row(
                    {"model": model, "dataset": "digits", "fraction": 1.0, "start": "random", "trained": "all"},
                    {"accuracy": accuracies[-1], "loss": losses[-1]},
                    {"epoch": list(range(1, 9)), "train_loss": losses, "accuracy": accuracies},
                    entry="pretrain",
                    seed=seed,
                    run=f"{model}-{seed}",
                    group=model,
                    provenance=PROVENANCE | {"command": f"python main_pretrain.py model={model} seed={seed}"},
                )
            )
    error = "loss is not finite between steps 50 and 100\nsamples <script>alert(1)</script> & 17"
    failed = {"entry": "pretrain", "provenance": PROVENANCE}
    rows.append(
        Row({**rows[-1].cell, "model": "linear"}, seed=3, run="linear-3", status="diverged", error=error, **failed)
    )
    rows.append(
        Row({"dataset": "digits"}, seed=0, run="odd-0", status="failed", error="ValueError: no model", **failed)
    )
    return rows
