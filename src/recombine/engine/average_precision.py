"""Mean average precision of detectors: VOC's two rules, and COCO's through torchmetrics."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from recombine.core.distributed import gather_by_index
from recombine.core.types import Batch
from recombine.engine.metrics import Metric

__all__ = ["MeanAveragePrecision", "average_precision", "voc_average_precisions"]

IOU = 0.5
"""Overlap from which VOC calls an object found."""


class MeanAveragePrecision(Metric):
    """`map_voc07` (11 points), `map_area` (VOC from 2010 on) and `map_coco` (IoU 0.5 to 0.95), in percent.

    Objects that do not count are neither wanted nor wrong. `compute` sets `ap`, VOC07's of each class.
    """

    def __init__(self, classes: int) -> None:
        super().__init__(0)
        self.classes = classes
        self.ap: list[float] = []
        """Percent of each class after `compute`; NaN where a class has no object."""
        self._parts: list[tuple[Tensor, ...]] = []

    def reset(self) -> None:
        """Forget what was added."""
        self._parts = []

    def update(self, logits: Tensor, batch: Batch) -> None:
        """Add a batch: `logits` [B, N, 6] as a `Detector` gives them, labels as images with boxes have them."""
        self._parts.append(tuple(value.detach().float().cpu() for value in (logits, batch.labels)))
        self._parts[-1] = (batch.index.cpu(), *self._parts[-1])

    def compute(self) -> dict[str, float]:
        """Values by name over all processes."""
        nothing = (torch.zeros(0, dtype=torch.int64), torch.zeros(0, 1, 6), torch.zeros(0, 1, 6))
        parts = [torch.cat(column) for column in zip(*(self._parts or [nothing]), strict=True)]
        _, found, wanted = gather_by_index(*parts)
        rows = [each[each[:, 5] >= 0] for each in found]
        truth = [each[each[:, 4] >= 0] for each in wanted]
        arrays = [each.numpy() for each in rows], [each.numpy() for each in truth]
        area, voc07 = (voc_average_precisions(*arrays, self.classes, eleven) for eleven in (False, True))
        self.ap = [100 * value for value in voc07]
        return {"map_voc07": _mean(voc07), "map_area": _mean(area), "map_coco": _coco(rows, truth)}


def voc_average_precisions(
    found: Sequence[np.ndarray], wanted: Sequence[np.ndarray], classes: int, eleven: bool
) -> list[float]:
    """Average precision of each class at IoU 0.5, in 0..1; NaN for a class without objects that count.

    `found`: of each image [n, 6] = box, score, label; `wanted`: [m, 6] = box, label, whether it does not count.
    """
    result = []
    for label in range(classes):
        scores, right = [], []
        count = 0
        for rows, truth in zip(found, wanted, strict=True):
            mine, objects = rows[rows[:, 5] == label], truth[truth[:, 4] == label]
            count += int((objects[:, 5] == 0).sum())
            mine = mine[np.argsort(-mine[:, 4], kind="stable")]
            kept, hits = _match(mine, objects)
            scores.append(mine[kept, 4])
            right.append(hits[kept])
        order = np.argsort(-np.concatenate(scores), kind="stable") if scores else np.zeros(0, int)
        hits = np.concatenate(right)[order] if right else np.zeros(0)
        result.append(average_precision(hits, count, eleven) if count else float("nan"))
    return result


def _mean(values: Sequence[float]) -> float:
    """Percent, over classes with objects; 0 if there is none."""
    known = [value for value in values if not np.isnan(value)]
    return float(100 * np.mean(known)) if known else 0.0


def _match(rows: np.ndarray, objects: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of detections of one class in one image, best first: which count, and which find an object not found before.

    A detection belongs to the object it overlaps most (VOC's rule), even if that has been found already.
    """
    counts, hits = np.ones(len(rows), bool), np.zeros(len(rows))
    taken = np.zeros(len(objects), bool)
    overlaps = _iou(rows, objects)
    for place in range(len(rows) if len(objects) else 0):
        best = int(overlaps[place].argmax())
        if overlaps[place, best] < IOU:
            continue
        if objects[best, 5]:
            counts[place] = False
        elif not taken[best]:
            taken[best], hits[place] = True, 1
    return counts, hits


def _iou(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    low, high = np.maximum(one[:, None, :2], other[None, :, :2]), np.minimum(one[:, None, 2:4], other[None, :, 2:4])
    both = np.clip(high - low, 0, None).prod(-1)
    areas = [(boxes[:, 2:4] - boxes[:, :2]).prod(-1) for boxes in (one, other)]
    return both / np.clip(areas[0][:, None] + areas[1][None] - both, 1e-9, None)


def average_precision(hits: np.ndarray, count: int, eleven: bool) -> float:
    """Of detections, best first (1: right), and `count` objects: precision made monotone, averaged over recall.

    `eleven`: at recalls 0, 0.1, ..., 1 (VOC 2007); otherwise the area under it (VOC from 2010 on).
    """
    right = np.cumsum(hits)
    recall, precision = right / count, right / np.arange(1, len(hits) + 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]
    if eleven:
        return float(np.mean([best[recall >= r].max(initial=0) for r in np.arange(0, 1.1, 0.1)]))
    return float((np.diff(np.concatenate([[0], recall])) * best).sum())


def _coco(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    from torchmetrics.detection import MeanAveragePrecision as Coco

    metric = Coco(backend="pycocotools")
    predictions = [{"boxes": each[:, :4], "scores": each[:, 4], "labels": each[:, 5].long()} for each in found]
    truth = [{"boxes": e[:, :4], "labels": e[:, 4].long(), "iscrowd": e[:, 5].long()} for e in wanted]
    metric.update(predictions, truth)
    return 100 * max(0.0, float(metric.compute()["map"]))  # -1: no object at all
