"""The supernetworks of the paper's two ImageNet experiments: sizes and costs that the authors' code gives."""

from __future__ import annotations

import pytest

from recombine import models
from recombine.stitch.parents import Parent
from recombine.stitch.search.space import references

ALIKE = {"weights": None, "size": 224, "crop_pct": 0.875, "interpolation": "bilinear"}


def parent(name: str) -> models.Model:
    return models.build({"name": name, "architecture": f"timm:{name}", **ALIKE})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("names", "pairs", "costs"),
    [
        (("resnet50", "resnext50_32x4d"), 206, (4_089_238_376, 4_230_549_096, 8_319_787_472)),
        (("resnet152", "efficientnet_b4"), 332, (11_513_779_048, 1_503_740_472, 13_017_519_520)),
    ],
)
def test_imagenet_pairs(joined, names, pairs, costs):
    net = joined(*(parent(name) for name in names))
    assert len(net.pairs) == pairs and len(net.alphabet) == 2 * pairs + 1
    assert tuple(net.cost(genotype) for genotype in references(len(net.alphabet))) == pytest.approx(costs, rel=5e-3)
    if names[0] == "resnet50":
        assert sum(p.numel() for p in net.stitches.parameters()) == 240_523_264
        assert sum(vertex.cost for vertex in net.graph.vertices) == pytest.approx(46_322_740_176, rel=5e-3)


def test_candidates_of_resnet_50_are_all_operations_but_the_input_and_the_output():
    nodes = Parent(parent("resnet50")).nodes
    assert len(nodes) == 209 - 3  # the classifier feeds the output
