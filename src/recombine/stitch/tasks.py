"""What networks answer and how that is scored: the one place that knows whether images or pixels have labels."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import torch
from scipy.stats import binom
from torch import Tensor
from torch.nn import functional as F

from recombine.core.distributed import all_reduce_sum
from recombine.core.labels import IGNORE

__all__ = ["Classification", "Segmentation", "Task", "for_task", "mcnemar"]

GRID = 16
"""Rows and columns of the pixels of an image that stand for it in temperature, loss and calibration."""
RESAMPLES = 10_000
"""Sets of images of a bootstrap."""
ABSENT = -1
"""The label of a pixel of the grid that has no class."""


class Task(ABC):
    """Scores of networks from what they answer to each image, counts [K] that are added up over images.

    Logits come as [G, B, C, ...] of G networks and B images, labels as [B, ...], counts as float32 [G, B, K].
    """

    score: str
    """The name of the score, of which more is better, in settings and rows."""
    pixels: bool
    """Whether every pixel has a label."""

    @property
    def about(self) -> dict[str, str]:
        """What a network and its file say about it, if it is not the classification of images."""
        return {"task": "segmentation"} if self.pixels else {}

    @abstractmethod
    def count(self, logits: Tensor, labels: Tensor) -> Tensor:
        """What each network answers to each image: [G, B, K]."""

    @abstractmethod
    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross entropy of each image, its mean over the pixels that have a class: float32 [G, B]."""

    @abstractmethod
    def value(self, sums: Tensor, images: int) -> Tensor:
        """The score 0..1 of counts that are added up over `images`, float64 [..., K] -> [...]."""

    @abstractmethod
    def differences(self, counts: Tensor, others: Tensor) -> Tensor:
        """How much better the others are on each image, float64 [G, n, K] of two networks each -> [G, n].

        Their mean is the difference of the scores (to first order). Exchanging both networks on an image turns the
        sign of its difference and changes no other one, so that signs are fair coins if neither is better.
        """

    @abstractmethod
    def p_values(self, counts: np.ndarray, reference: np.ndarray) -> np.ndarray:
        """One-sided p-values that networks, counts [n, N, K], score no more than a reference [N, K]: [n]."""

    @abstractmethod
    def sample(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The answers that calibration is measured on: [G, B, P, C] and labels [B, P], `ABSENT` where there is none."""

    def details(self, sums: Tensor) -> dict[str, float]:
        """Other scores in percent of counts that are added up over all images, [K]."""
        return {}


class Classification(Task):
    """Accuracy: of each image 1 for a right answer."""

    score, pixels = "accuracy", False

    def count(self, logits: Tensor, labels: Tensor) -> Tensor:
        return (logits.argmax(2) == labels).float()[..., None]

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits.movedim(2, 1), labels.expand(len(logits), -1), reduction="none").float()

    def value(self, sums: Tensor, images: int) -> Tensor:
        return sums[..., 0] / images

    def differences(self, counts: Tensor, others: Tensor) -> Tensor:
        return (others - counts)[..., 0].double()

    def p_values(self, counts: np.ndarray, reference: np.ndarray) -> np.ndarray:
        """McNemar's test."""
        return mcnemar(counts[..., 0] > 0, reference[..., 0] > 0)

    def sample(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return logits[:, :, None], labels[:, None]


class Segmentation(Task):
    """mIoU of all images together: of each image, for each class, the pixels that are in both and in either.

    These are the diagonal of the image's confusion matrix, and its row and column sums less the diagonal; so mIoU of
    any set of images is exact. Classes that neither occur nor are predicted in a set do not count.
    """

    score, pixels = "miou", True

    def __init__(self, classes: int) -> None:
        self.classes = classes

    def count(self, logits: Tensor, labels: Tensor) -> Tensor:
        cells = self.classes**2 + 1
        groups = torch.arange(len(logits) * len(labels), device=labels.device).view(len(logits), len(labels), 1, 1)
        found = torch.where(labels == IGNORE, cells - 1, labels * self.classes + logits.argmax(2)) + groups * cells
        counts = torch.zeros(groups.numel() * cells, device=labels.device)
        counts.index_add_(0, found.flatten(), counts.new_ones(()).expand(found.numel()))
        confusion = counts.view(*groups.shape[:2], cells)[..., :-1].unflatten(-1, (self.classes, self.classes))
        both = confusion.diagonal(dim1=-2, dim2=-1)
        return torch.cat([both, confusion.sum(-1) + confusion.sum(-2) - both], -1)

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        known = (labels != IGNORE).flatten(1).sum(1).clamp(min=1)
        each = [F.cross_entropy(one, labels, ignore_index=IGNORE, reduction="none") for one in logits]
        return torch.stack([one.float().flatten(1).sum(1) / known for one in each])

    def value(self, sums: Tensor, images: int) -> Tensor:
        both, either = sums.unflatten(-1, (2, self.classes)).unbind(-2)
        return (both / either.clamp(min=1)).sum(-1) / (either > 0).sum(-1).clamp(min=1)

    def differences(self, counts: Tensor, others: Tensor) -> Tensor:
        """The differential of mIoU at the mean of both networks, which exchanging them on an image does not change."""
        means = all_reduce_sum((counts.double() + others).sum(1).cpu()) / 2
        both, either = means.to(counts.device).unflatten(-1, (2, self.classes)).unbind(-2)
        more, wider = (others.double() - counts).unflatten(-1, (2, self.classes)).unbind(-2)
        slope = 1 / either.clamp(min=1)
        each = ((more - wider * (both * slope)[:, None]) * slope[:, None]).sum(-1)
        images = int(all_reduce_sum(torch.tensor(counts.shape[1])))
        return images * each / (either > 0).sum(-1).clamp(min=1)[:, None]

    def p_values(self, counts: np.ndarray, reference: np.ndarray) -> np.ndarray:
        """By a bootstrap: images are drawn with replacement, the same for both, and mIoU is computed of each set."""
        drawn = np.random.default_rng(0).multinomial(
            len(reference), np.full(len(reference), 1 / len(reference)), RESAMPLES
        )
        times = torch.from_numpy(drawn).double()
        scores = [self.value(times @ torch.from_numpy(one).double(), len(reference)) for one in (*counts, reference)]
        return np.array([(1 + int((one <= scores[-1]).sum())) / (1 + RESAMPLES) for one in scores[:-1]])

    def sample(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        rows, columns = ((torch.arange(GRID) * 2 + 1) * side // (2 * GRID) for side in labels.shape[-2:])
        kept = labels[:, rows][:, :, columns].flatten(1)
        found = logits[..., rows, :][..., columns].flatten(-2).movedim(2, -1)
        return found, torch.where(kept == IGNORE, ABSENT, kept)

    def details(self, sums: Tensor) -> dict[str, float]:
        """Of all pixels that have a class, those that are right."""
        both, either = sums.double().view(2, -1).sum(1).tolist()
        return {"pixel_accuracy": 200 * both / max(both + either, 1)}


def for_task(task: str, classes: int) -> Task:
    """How networks are scored that learn what data have for labels (`classification` or `segmentation`)."""
    return Segmentation(classes) if task == "segmentation" else Classification()


def mcnemar(correct: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Exact one-sided p-values that networks (bool [n, N]) are no more accurate than a reference (bool [N]): [n].

    Of the images that only one of both gets right, half would be the network's if both were equally accurate.
    """
    gained, lost = (correct & ~reference).sum(1), (~correct & reference).sum(1)
    return binom.sf(gained - 1, gained + lost, 0.5)
