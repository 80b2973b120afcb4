"""Mean average precision: VOC's rules by hand and by torchmetrics, objects that do not count, several processes."""

import numpy as np
import pytest
import torch
from torchmetrics.detection import MeanAveragePrecision as Reference

from recombine.core.types import Batch
from recombine.engine.average_precision import MeanAveragePrecision, average_precision, voc_average_precisions

BOX = np.array([0, 0, 10, 10], np.float32)


def rows(*entries):
    """Detections or objects: a shift of `BOX` to the right, then two more columns."""
    return np.array([[*(BOX + np.array([shift, 0, shift, 0])), *rest] for shift, *rest in entries], np.float32).reshape(
        -1, 6
    )


def test_precision_over_recall_by_hand():
    hits = np.array(
        [1, 0, 1, 1, 0]
    )  # of four objects: precision 1, 1/2, 2/3, 3/4, 3/5 at recall 1/4, 1/4, 1/2, 3/4, 3/4
    assert average_precision(hits, 4, eleven=False) == pytest.approx((1 + 3 / 4 + 3 / 4) / 4)
    assert average_precision(hits, 4, eleven=True) == pytest.approx((3 * 1 + 5 * 3 / 4) / 11)
    assert average_precision(np.zeros(0), 3, eleven=True) == 0


def test_matches_by_hand():
    """One object found twice, one that does not count found, one missed, one found too far off."""
    wanted = [rows((0, 0, 0), (50, 0, 1), (100, 0, 0), (200, 0, 0))]
    found = [rows((1, 0.9, 0), (0, 0.8, 0), (50, 0.7, 0), (106, 0.6, 0), (200, 0.3, 0), (0, 0.5, 1))]
    ap = voc_average_precisions(found, wanted, 3, eleven=False)
    # right, twice, (does not count), too far off, right: precision 1 and 2/4 at two of three objects
    assert ap[0] == pytest.approx((1 + 2 / 4) / 3) and np.isnan(ap[1]) and np.isnan(ap[2])


@pytest.fixture(scope="module")
def scene():
    """Random objects of three classes in 20 images and detections near them, some doubled, some of another class."""
    rng = np.random.default_rng(0)
    found, wanted = torch.full((20, 16, 6), -1.0), torch.full((20, 5, 6), -1.0)
    for image in range(20):
        for k in range(rng.integers(1, 6)):
            corner, side = rng.uniform(0, 80, 2), rng.uniform(10, 30, 2)
            label = int(rng.integers(3))
            wanted[image, k] = torch.tensor([*corner, *(corner + side), label, 0])
            for copy in range(rng.integers(0, 3)):
                moved = np.concatenate([corner, corner + side]) + rng.normal(0, 2.5, 4)
                found[image, 3 * k + copy] = torch.tensor([*moved, rng.uniform(), label if rng.uniform() < 0.8 else 2])
    return found, wanted


def measured(found, wanted, size=7):
    metric = MeanAveragePrecision(3)
    metric.reset()
    for start in range(0, 20, size):
        part = slice(start, start + size)
        batch = Batch(torch.zeros(len(found[part]), 3, 4, 4), wanted[part], torch.arange(20)[part])
        metric.update(found[part], batch)
    return metric.compute(), metric.ap


def test_it_is_torchmetrics(scene):
    found, wanted = scene
    values, ap = measured(found, wanted)
    reference = Reference(class_metrics=True)
    kept = [rows[rows[:, 5] >= 0] for rows in found]
    truth = [rows[rows[:, 4] >= 0] for rows in wanted]
    reference.update(
        [{"boxes": each[:, :4], "scores": each[:, 4], "labels": each[:, 5].long()} for each in kept],
        [{"boxes": each[:, :4], "labels": each[:, 4].long()} for each in truth],
    )
    expected = reference.compute()
    assert values["map_coco"] == pytest.approx(100 * float(expected["map"]), abs=1e-4)
    # COCO interpolates at 101 recalls what VOC integrates, and its matching lets a box go to its second-best object
    assert values["map_area"] == pytest.approx(100 * float(expected["map_50"]), abs=1.5)
    assert 20 < values["map_voc07"] < 95 and np.mean(ap) == pytest.approx(values["map_voc07"])
    assert measured(found, wanted, size=3)[0] == values, "whatever the batches"


def test_nothing_found_and_nothing_to_find(scene):
    found, wanted = scene
    assert measured(torch.full_like(found, -1), wanted)[0] == {"map_voc07": 0, "map_area": 0, "map_coco": 0}
    assert measured(found, torch.full_like(wanted, -1))[0] == {"map_voc07": 0, "map_area": 0, "map_coco": 0}
