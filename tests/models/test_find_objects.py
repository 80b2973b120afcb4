"""A detector's objects by steps that can be exported equal those of torchvision's own."""

import pytest
import torch

from recombine.models import detection
from recombine.models.detection import DETECTIONS, faster_rcnn
from recombine.models.find_objects import find_objects


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    network = faster_rcnn(5, "mobilenetv2_035", channels=16, hidden=32, anchor=3).eval()
    network.roi_heads.box_roi_pool.canonical_scale = 32  # so that boxes of small images come from all maps
    return network


@pytest.mark.parametrize(("score", "height", "width"), [(0.05, 96, 96), (0.19, 64, 128), (0.99, 96, 96)])
@pytest.mark.parametrize("seed", range(3))
def test_objects_are_those_of_torchvision(network, monkeypatch, score, height, width, seed):
    monkeypatch.setattr(network.roi_heads, "score_thresh", score)
    image = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        expected = network(image)[0]
        found = find_objects(network.rpn, network.roi_heads, image, network._maps(image), DETECTIONS)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
    assert (expected[:, 5] >= 0).any() == (score < 0.9), "with objects and without"


def test_regions_that_an_image_lacks_are_no_objects(network, monkeypatch):
    """Where fewer regions are left than rows are kept, the rest holds nothing."""
    monkeypatch.setattr(network.rpn, "nms_thresh", 0.0)
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        expected = network(image)[0]
        found = find_objects(network.rpn, network.roi_heads, image, network._maps(image), DETECTIONS)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


def test_only_exporting_leaves_torchvisions_way(network, monkeypatch):
    monkeypatch.setattr(detection, "find_objects", None)
    with torch.no_grad():
        assert network(torch.zeros(1, 3, 64, 64)).shape == (1, DETECTIONS, 6)
