"""N models on the same images: from their predictions to one row for each ordered pair."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recombine.core.types import Row
from recombine.engine.class_predictions import ClassPredictions
from recombine.flips import knowledge
from recombine.flips.semantics import Similarity
from recombine.flips.top_classes import count_top_classes

__all__ = ["Comparison", "PairComparison", "list_pairs", "make_rows"]

TOP_PERCENTAGES = (2, 5, 20, 50)
"""Metrics are reported for the classes that hold this many percent of the flips."""
ENSEMBLES = ("ensemble", "probability_ensemble")
LOGITS_IN_MEMORY = 16
"""Networks whose logits are in memory at once."""
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
        loader = data.loader("test", 256, train=False, size=32)
        models = {name: recombine.models.build(name) for name in ("resnet20", "resnet56")}
        comparison = Comparison(list(models), [predict_classes(model, loader) for model in models.values()])
        comparison.matrices["rho_pos"]  # what each knows that the other does not
    """

    names: Sequence[str]
    predictions: Sequence[ClassPredictions]
    logits: Callable[[int], Tensor] | None = None
    """[n, C] of each model by its position, where they were kept."""

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """[n]."""
        return self.predictions[0].labels.numpy()

    @cached_property
    def present(self) -> NDArray[np.int64]:
        """The classes that have images; only these are counted, be it a subset of the dataset's."""
        return np.unique(self.labels)

    @cached_property
    def images_per_class(self) -> NDArray[np.int64]:
        """Images of each class in `present`."""
        return np.bincount(self.labels)[self.present]

    @cached_property
    def right(self) -> NDArray[np.bool_]:
        """Which predictions are right, [N, n]."""
        return np.stack([each.right for each in self.predictions])

    @cached_property
    def accuracy(self) -> NDArray[np.float64]:
        """Top-1 accuracy of each model, percent [N]."""
        return knowledge.accuracy(self.right)

    @cached_property
    def flips(self) -> NDArray[np.integer]:
        """Positive flips [N, N, classes in `present`]."""
        return knowledge.flips_per_class(self.right, np.searchsorted(self.present, self.labels), len(self.present))

    @cached_property
    def matrices(self) -> dict[str, NDArray[np.float64]]:
        """Percent matrices by the name of their metric."""
        rho = 100.0 * knowledge.positive_flips(self.right) / len(self.labels)
        confidence = np.stack([each.confidence.numpy() for each in self.predictions])
        return {
            "rho_pos": rho,
            "rho_neg": rho.T,
            "agreement": knowledge.agreement(np.stack([each.classes.numpy() for each in self.predictions])),
            "oracle_accuracy": knowledge.oracle_accuracy(self.right),
            "ensemble_accuracy": knowledge.confident_ensemble_accuracy(self.right, confidence),
        }

    def count_flips(self, legacy: bool) -> dict[str, NDArray[np.float64]]:
        """What the flips per class tell, [N, N] by the name of the metric; one teacher's row at a time."""
        rows: list[dict[str, NDArray]] = []
        for counts in self.flips:
            total = counts.sum(-1)
            row = {"flips": total, "mean": total / counts.shape[-1], "std": counts.std(-1, dtype=np.float64)}
            row["entropy"] = knowledge.entropy(counts)
            numbers = count_top_classes(counts, TOP_PERCENTAGES, legacy=legacy)
            rows.append(row | {f"top{top}": number for top, number in zip(TOP_PERCENTAGES, numbers, strict=True)})
        return {name: np.stack([row[name] for row in rows]).astype(np.float64) for name in rows[0]}


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
    """One row for each pair; `cell` is common to all, `claimed` are published accuracies in percent."""
    with_series = {*_pairs_with_series(comparison, pairs)}
    published = np.array([np.nan if (value := claimed.get(name)) is None else value for name in comparison.names])
    t, s = (np.array([getattr(pair, role) for pair in pairs], int) for role in ("teacher", "student"))
    columns = _accuracies(comparison, t, s) | _flips(comparison, t, s, legacy)
    columns |= {f"claimed_accuracy_{role}": published[index] for role, index in (("teacher", t), ("student", s))}
    values = zip(*(column.tolist() for column in columns.values()), strict=True)
    rows = []
    for pair, numbers in zip(pairs, values, strict=True):
        positive = comparison.flips[pair.teacher, pair.student]
        # no published accuracy, and the entropy of no flips, are nan
        metrics = {name: value for name, value in zip(columns, numbers, strict=True) if value == value}
        most = np.argsort(-positive, kind="stable")
        if similarity is not None:
            metrics |= _similarities(comparison.present[most], metrics, similarity)
        series: dict[str, list] = {
            "classes_taught_most": [class_names[comparison.present[c]] for c in most[:5] if positive[c]]
        }
        if pair in with_series:
            series["positive_flips_per_class"] = positive.tolist()
            series["negative_flips_per_class"] = comparison.flips[pair.student, pair.teacher].tolist()
            series["images_per_class"] = comparison.images_per_class.tolist()
        names = {role: comparison.names[getattr(pair, role)] for role in ("teacher", "student")}
        rows.append(Row(cell={**names, "baseline": pair.baseline, **cell}, metrics=metrics, series=series))
    return rows


def _accuracies(comparison: Comparison, t: NDArray, s: NDArray) -> dict[str, NDArray]:
    """What pairs get right alone and together, by metric; gains are over the better of the two."""
    alone = comparison.accuracy[t], comparison.accuracy[s]
    metrics = {"accuracy_teacher": alone[0], "accuracy_student": alone[1], "accuracy_gap": alone[0] - alone[1]}
    metrics |= {name: matrix[t, s] for name, matrix in comparison.matrices.items()}
    if comparison.logits is not None:
        metrics["probability_ensemble_accuracy"] = _probability_ensembles(comparison, t, s)
    better = np.maximum(*alone)
    gains = {name: metrics[f"{name}_accuracy"] - better for name in ENSEMBLES if f"{name}_accuracy" in metrics}
    return metrics | {f"{name}_gain": gain for name, gain in gains.items()}


def _probability_ensembles(comparison: Comparison, t: NDArray, s: NDArray) -> NDArray[np.float64]:
    assert comparison.logits is not None
    read, labels = lru_cache(LOGITS_IN_MEMORY)(comparison.logits), torch.from_numpy(comparison.labels)
    return np.array(
        [knowledge.probability_ensemble_accuracy(read(a), read(b), labels) for a, b in zip(t, s, strict=True)]
    )


def _flips(comparison: Comparison, t: NDArray, s: NDArray, legacy: bool) -> dict[str, NDArray]:
    """Counts by class of pairs, by metric: how many, how even, and how few classes hold the top-X % of them."""
    counts, classes = comparison.count_flips(legacy), len(comparison.present)
    metrics: dict[str, NDArray] = {}
    for sign, places in (("positive", (t, s)), ("negative", (s, t))):
        names = {"flips": f"{sign}_flips", "mean": f"{sign}_flips_per_class_mean", "std": f"{sign}_flips_per_class_std"}
        metrics |= {to: counts[name][places] for name, to in names.items()}
        metrics[f"entropy_{sign}"] = counts["entropy"][places]
    metrics["entropy_uniform"] = np.full(len(t), np.log(classes))
    for top in TOP_PERCENTAGES:
        metrics[f"top{top}_classes"] = counts[f"top{top}"][t, s]
        metrics[f"top{top}_share"] = 100.0 * counts[f"top{top}"][t, s] / classes
    return metrics


def _similarities(most: NDArray, metrics: Mapping[str, float], similarity: Similarity) -> dict[str, float]:
    """How alike the classes are that hold the top-X % of the positive flips; `most` are all classes, by flips."""
    found = {}
    for top in TOP_PERCENTAGES:
        if number := int(metrics[f"top{top}_classes"]):
            classes = most[: max(2, number)]
            found[f"top{top}_similarity"], found[f"top{top}_similarity_max"] = similarity.of(classes)
            found[f"top{top}_similarity_relative"] = similarity.relative(classes)
    return found


def _pairs_with_series(comparison: Comparison, pairs: Sequence[PairComparison]) -> Iterable[PairComparison]:
    """All pairs while their counts are few, else the weakest, the most equal and the strongest teacher's pair."""
    if 3 * len(pairs) * len(comparison.present) <= SERIES_LIMIT:
        return pairs
    real = [pair for pair in pairs if pair.baseline == "none"]
    gaps = [comparison.accuracy[pair.teacher] - comparison.accuracy[pair.student] for pair in real]
    return [real[i] for i in (np.argmin(gaps), np.argmin(np.abs(gaps)), np.argmax(gaps))]
