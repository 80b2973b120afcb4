"""N models on the same images: from their predictions to one row for each ordered pair."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from recombine.core.types import Row
from recombine.flips import knowledge
from recombine.flips.semantics import Similarity
from recombine.flips.top_classes import count_top_classes

__all__ = ["Comparison", "PairComparison", "list_pairs", "make_rows"]

TOP_PERCENTAGES = (2, 5, 20, 50)
"""Metrics are reported for the classes that hold this many percent of the flips."""
ENSEMBLES = ("ensemble", "probability_ensemble")
SERIES_LIMIT = 200_000
"""Numbers per class that the rows of one run may hold; beyond it only three typical pairs have them."""


class PairComparison(NamedTuple):
    """Positions of two models; `baseline` says which of them is a randomly initialised copy."""

    teacher: int
    student: int
    baseline: str = "none"


@dataclass(frozen=True)
class Comparison:
    """Predictions of N models for the same n images; matrices are [N, N], the teacher in the row, in percent.

    Example:
        models = {name: recombine.models.build(name) for name in ("resnet20", "resnet56")}
        predictions = predict_many(models, lambda size: data.loader("test", 256, train=False, size=size))
        comparison = Comparison(list(models), [p.logits for p in predictions.values()], labels)
        comparison.matrices["rho_pos"]  # what each knows that the other does not
    """

    names: Sequence[str]
    logits: Sequence[Tensor]
    """[n, C] of each model."""
    labels: Tensor
    """int64 [n]."""

    @cached_property
    def present(self) -> NDArray[np.int64]:
        """The classes that have images; only these are counted, be it a subset of the dataset's."""
        return np.unique(self.labels.numpy())

    @cached_property
    def images_per_class(self) -> NDArray[np.int64]:
        """Images of each class in `present`."""
        return np.bincount(self.labels.numpy())[self.present]

    @cached_property
    def predicted(self) -> NDArray[np.int64]:
        """Predicted classes [N, n]."""
        return np.stack([logits.argmax(1).numpy() for logits in self.logits])

    @cached_property
    def confidence(self) -> NDArray[np.float32]:
        """Largest softmax probability [N, n]."""
        return np.stack([logits.float().softmax(1).amax(1).numpy() for logits in self.logits])

    @cached_property
    def right(self) -> NDArray[np.bool_]:
        """Which predictions are right, [N, n]."""
        return knowledge.right_predictions(self.predicted, self.labels.numpy())

    @cached_property
    def accuracy(self) -> NDArray[np.float64]:
        """Top-1 accuracy of each model, percent [N]."""
        return knowledge.accuracy(self.right)

    @cached_property
    def flips(self) -> NDArray[np.int32]:
        """Positive flips [N, N, classes in `present`]."""
        return knowledge.flips_per_class(
            self.right, np.searchsorted(self.present, self.labels.numpy()), len(self.present)
        )

    @cached_property
    def matrices(self) -> dict[str, NDArray[np.float64]]:
        """Percent matrices by the name of their metric."""
        rho = 100.0 * knowledge.positive_flips(self.right) / len(self.labels)
        return {
            "rho_pos": rho,
            "rho_neg": rho.T,
            "agreement": knowledge.agreement(self.predicted),
            "oracle_accuracy": knowledge.oracle_accuracy(self.right),
            "ensemble_accuracy": knowledge.confident_ensemble_accuracy(self.right, self.confidence),
        }


def list_pairs(models: int, pairs: str | int, seed: int, random_copies: bool) -> list[PairComparison]:
    """The pairs to report: all ordered ones, or draws as in the authors' code; models + i is the random copy of i.

    A number of `pairs` draws teacher, then student with NumPy's legacy generator seeded seed, seed + 1, ...; pairs
    drawn twice appear once.
    """
    if pairs == "all":
        indices = [(t, s) for t in range(models) for s in range(models) if t != s]
    else:
        draws = (np.random.RandomState(seed + k).choice(models, 2, replace=False) for k in range(int(pairs)))
        indices = list(dict.fromkeys((int(t), int(s)) for t, s in draws))
    found = [PairComparison(t, s) for t, s in indices]
    if random_copies:
        found += [PairComparison(t, models + s, "student") for t, s in indices]
        found += [PairComparison(models + t, s, "teacher") for t, s in indices]
    return found


def make_rows(
    comparison: Comparison,
    pairs: Sequence[PairComparison],
    cell: Mapping[str, Any],
    *,
    class_names: Sequence[str],
    claimed: Mapping[str, float | None],
    similarity: Similarity | None,
    legacy: bool,
) -> list[Row]:
    """One row for each pair; `cell` says where it was measured, `claimed` are published accuracies in percent."""
    with_series = _pairs_with_series(comparison, pairs)
    rows = []
    for pair in pairs:
        t, s = pair.teacher, pair.student
        positive, negative = comparison.flips[t, s], comparison.flips[s, t]
        metrics: dict[str, float | None] = {**_accuracies(comparison, t, s)}
        for sign, counts in (("positive", positive), ("negative", negative)):
            metrics |= {
                f"{sign}_flips": float(counts.sum()),
                f"{sign}_flips_per_class_mean": float(counts.mean()),
                f"{sign}_flips_per_class_std": float(counts.std()),
                f"entropy_{sign}": float(knowledge.entropy(counts)),
            }
        metrics["entropy_uniform"] = float(np.log(len(comparison.present)))
        metrics |= _expertise(comparison, positive, similarity, legacy)
        for role, index in (("teacher", t), ("student", s)):
            metrics[f"claimed_accuracy_{role}"] = claimed.get(comparison.names[index])
        experts = [class_names[comparison.present[c]] for c in np.argsort(-positive, kind="stable")[:5] if positive[c]]
        series = {"classes_taught_most": experts}
        if pair in with_series:
            series["positive_flips_per_class"] = positive.tolist()
            series["negative_flips_per_class"] = negative.tolist()
            series["images_per_class"] = comparison.images_per_class.tolist()
        names = {"teacher": comparison.names[t], "student": comparison.names[s], "baseline": pair.baseline}
        rows.append(Row(cell={**names, **cell}, metrics=_finite(metrics), series=series))
    return rows


def _finite(metrics: Mapping[str, float | None]) -> dict[str, float]:
    """Metrics that have a value: no published accuracy and the entropy of no flips are left out."""
    return {name: value for name, value in metrics.items() if value is not None and np.isfinite(value)}


def _accuracies(comparison: Comparison, t: int, s: int) -> dict[str, float]:
    """What the pair gets right alone and together; gains are over the better of the two."""
    alone = comparison.accuracy[[t, s]]
    metrics = {
        "accuracy_teacher": float(alone[0]),
        "accuracy_student": float(alone[1]),
        "accuracy_gap": float(alone[0] - alone[1]),
        **{name: float(matrix[t, s]) for name, matrix in comparison.matrices.items()},
        "probability_ensemble_accuracy": knowledge.probability_ensemble_accuracy(
            comparison.logits[t], comparison.logits[s], comparison.labels
        ),
    }
    gains = {f"{name}_gain": metrics[f"{name}_accuracy"] - float(alone.max()) for name in ENSEMBLES}
    return metrics | gains


def _expertise(
    comparison: Comparison, positive: NDArray[np.int32], similarity: Similarity | None, legacy: bool
) -> dict[str, float]:
    """How few classes hold the top-X % of the positive flips, their percent of all classes, and how alike they are."""
    metrics = {}
    for top in TOP_PERCENTAGES:
        number = int(count_top_classes(positive, top, legacy=legacy))
        metrics[f"top{top}_classes"] = float(number)
        metrics[f"top{top}_share"] = 100.0 * number / len(positive)
        if similarity is not None and number:
            at_least_two = np.argsort(-positive, kind="stable")[: max(2, number)]
            classes = comparison.present[at_least_two]
            metrics[f"top{top}_similarity"], metrics[f"top{top}_similarity_max"] = similarity.of(classes)
            metrics[f"top{top}_similarity_relative"] = similarity.relative(classes)
    return metrics


def _pairs_with_series(comparison: Comparison, pairs: Sequence[PairComparison]) -> Iterable[PairComparison]:
    """All pairs while their counts are few, else the weakest, the most equal and the strongest teacher's pair."""
    if 3 * len(pairs) * len(comparison.present) <= SERIES_LIMIT:
        return pairs
    real = [pair for pair in pairs if pair.baseline == "none"]
    gaps = [comparison.accuracy[pair.teacher] - comparison.accuracy[pair.student] for pair in real]
    return [real[i] for i in (np.argmin(gaps), np.argmin(np.abs(gaps)), np.argmax(gaps))]
