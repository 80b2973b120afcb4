"""Complementary knowledge of pretrained models, as arithmetic on their predictions.

N models are compared at once: every matrix is [N, N] with the teacher in the row and the student in the column.
`right` [N, n] bool says which model predicts which of the n images correctly.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

__all__ = [
    "accuracy",
    "agreement",
    "confident_ensemble_accuracy",
    "entropy",
    "flips_per_class",
    "oracle_accuracy",
    "positive_flips",
    "probability_ensemble_accuracy",
]

EXACT_IN_FLOAT32 = 2**24
"""Counts up to here are exact as float32, so the fast matrix product may be used."""


def accuracy(right: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Top-1 accuracy of each model, percent [N]."""
    return 100.0 * right.mean(axis=1)


def positive_flips(right: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Images that the teacher gets right and the student wrong, [N, N]; negative flips are its transpose.

    rho_pos = 100 * positive_flips / n is the complementary knowledge of the teacher, and
    rho_pos - rho_neg = accuracy of the teacher - accuracy of the student.
    """
    dtype = np.dtype("float32" if right.shape[1] <= EXACT_IN_FLOAT32 else "float64")
    return np.rint(np.matmul(right.astype(dtype), (~right).astype(dtype).T)).astype(np.int64)


def flips_per_class(right: NDArray[np.bool_], labels: ArrayLike, classes: int) -> NDArray[np.integer]:
    """Positive flips among the images of each class, [N, N, classes], in 16 bits where these are enough.

    The images are cut by class first, so all classes together cost one matrix product over all images.
    """
    labels = np.asarray(labels)
    order = np.argsort(labels, kind="stable")
    images_per_class = np.bincount(labels, minlength=classes)
    ends = np.cumsum(images_per_class)
    small = images_per_class.max(initial=0) <= np.iinfo(np.int16).max
    counts = np.zeros((len(right), len(right), classes), dtype=np.int16 if small else np.int32)
    for label, images in enumerate(np.split(order, ends[:-1])):
        counts[:, :, label] = positive_flips(right[:, images])
    return counts


def entropy(counts: ArrayLike) -> NDArray[np.float64]:
    """Entropy -sum p ln p of counts [..., C] over the classes, in nats (uniform: ln C); nan where there is no count."""
    counts = np.asarray(counts, dtype=np.float64)
    total = counts.sum(axis=-1, keepdims=True)
    fraction = np.divide(counts, total, out=np.full_like(counts, np.nan), where=total > 0)
    logarithm = np.log(fraction, out=np.zeros_like(fraction), where=fraction > 0)
    return -(fraction * logarithm).sum(axis=-1) + 0.0


def agreement(predictions: ArrayLike) -> NDArray[np.float64]:
    """Images on which two models predict the same class, right or wrong, percent [N, N]."""
    predictions = np.asarray(predictions)
    if predictions.max(initial=0) <= np.iinfo(np.int16).max:
        predictions = predictions.astype(np.int16)
    found = np.eye(len(predictions)) * 100
    for first in range(len(predictions)):
        found[first, first:] = _percent(predictions[first:] == predictions[first])
        found[first:, first] = found[first, first:]
    return found


def _percent(marked: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Marked images of each row, percent."""
    return np.array([100.0 * np.count_nonzero(row) / len(row) for row in marked])


def oracle_accuracy(right: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Accuracy of always choosing the model that is right, if one of the two is; percent [N, N]."""
    return accuracy(right)[None, :] + 100.0 * positive_flips(right) / right.shape[1]


def confident_ensemble_accuracy(right: NDArray[np.bool_], confidence: ArrayLike) -> NDArray[np.float64]:
    """Accuracy of taking the prediction of the more confident model, percent [N, N]; ties go to the student.

    `confidence` [N, n] is the largest softmax probability of each model. With a sign that says whether a model is
    right, the more confident of two is right where their signed confidences have a sum above 0, or, in a tie, where the
    student is right: one comparison an image.
    """
    signed = np.where(right, confidence, -np.asarray(confidence))
    beaten = np.where(right, np.nextafter(-signed, -np.inf, dtype=signed.dtype), -signed)
    return np.stack([_percent(teacher > beaten) for teacher in signed])


def probability_ensemble_accuracy(teacher: Tensor, student: Tensor, labels: Tensor, chunk: int = 8192) -> float:
    """Accuracy of the mean of two models' probabilities, percent, from their logits [n, C]."""
    right = torch.zeros((), dtype=torch.int64)
    for a, b, label in zip(teacher.split(chunk), student.split(chunk), labels.split(chunk), strict=True):
        right += ((a.float().softmax(1) + b.float().softmax(1)).argmax(1) == label).sum()
    return 100.0 * float(right) / len(labels)
