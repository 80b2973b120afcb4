"""What is measured of a network, by what it learns."""

from __future__ import annotations

from recombine.engine.average_precision import MeanAveragePrecision
from recombine.engine.metrics import Accuracy, IoU, Metric, PerClass

__all__ = ["for_task"]


def for_task(task: str, classes: int) -> dict[str, Metric]:
    """Metrics of networks that classify images (`task` classification), every pixel (segmentation) or find boxes
    (detection)."""
    if task == "segmentation":
        return {"all": IoU(classes)}
    if task == "detection":
        return {"all": MeanAveragePrecision(classes)}
    return {"all": Accuracy(), "by class": PerClass(classes)}
