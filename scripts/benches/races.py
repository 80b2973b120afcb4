"""The work of a search with and without races, memo and shared layers, where good offspring exist."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import closing

import numpy as np
import torch

from benches.stitch import PARENTS, join, model, open_images, silent_run
from benches.timing import clock, now, the_device
from recombine.core.types import Row
from recombine.stitch.evaluator import OffspringEvaluator
from recombine.stitch.layers import set_affine
from recombine.stitch.parents import Parent
from recombine.stitch.pareto import hypervolume
from recombine.stitch.search.ga import FamilialGa
from recombine.stitch.search.space import Budget, Evaluations, Space, references
from recombine.stitch.supernetwork import Supernetwork

__all__ = ["measure"]

COURSE, RACED, POPULATION = 300, 1000, 32
"""Requests, images, individuals."""


def measure() -> Iterator[Row]:
    """A GA that drops poor networks early against one that shows all images to all, where good offspring exist.

    And both against one network after the other, whose images and multiply-adds are counted, not run.
    """
    net = _planted()
    with tempfile.TemporaryDirectory() as folder, closing(open_images(folder)) as data:
        loader = data.loader("test", 200, train=False, indices=data.indices("test")[:RACED])
        options = (net, loader, silent_run(folder))
        ours, plain = (
            Course(net, OffspringEvaluator(*options, precision="fp32", racing_alpha=alpha)) for alpha in (0.01, 0)
        )
    case, alone = "GA with planted offspring", f"against {COURSE} networks one by one"
    time = f"{clock(the_device())} for {COURSE} requests and {RACED} images"
    counted = COURSE * RACED
    for what, unit, numbers in (
        ("races: time", time, (1e3 * ours.seconds, 1e3 * plain.seconds)),
        ("races and memo: images seen", alone, (ours.images, counted)),
        ("memo alone: images seen", alone, (plain.images, counted)),
        ("races, memo and shared layers: multiply-adds", alone, (ours.computed, ours.one_by_one)),
        ("memo and shared layers: multiply-adds", alone, (plain.computed, plain.one_by_one)),
    ):
        first, second = numbers
        yield Row(
            {"case": f"{case}, {what}", "unit": unit}, {"speedup": second / first, "ours": first, "baseline": second}
        )
    found = {"speedup": ours.volume / plain.volume, "ours": ours.volume, "baseline": plain.volume}
    yield Row({"case": f"{case}, races: hypervolume found", "unit": "part of the whole"}, found)


class Course:
    """A search, and what it took."""

    def __init__(self, net: Supernetwork, evaluator: OffspringEvaluator) -> None:
        self.net, self.evaluator = net, evaluator
        self.computed = 0
        """Multiply-adds of all images."""
        self.one_by_one = 0
        """Those of all requests, each by itself on all images."""
        compute = net.compute

        def counted(vertex: int, images: torch.Tensor, values: list) -> object:
            self.computed += net.graph.vertices[vertex].cost * len(images)
            return compute(vertex, images, values)

        net.compute = counted  # type: ignore[method-assign]
        search = FamilialGa(Space(net.alphabet), Budget(COURSE), population=POPULATION)
        start = now(the_device())
        self.front = search.run(self._evaluate).members.objectives
        self.seconds = now(the_device()) - start
        del net.compute
        self.images = sum(score.images for score in evaluator.memo.values())
        corner = evaluator(references(len(net.genotype))).objectives.max(0)
        self.volume = hypervolume(self.front, corner) / corner[1]

    def _evaluate(self, genotypes: np.ndarray) -> Evaluations:
        self.one_by_one += RACED * sum(map(self.net.cost, genotypes))
        return self.evaluator(genotypes)


@torch.no_grad()
def _planted() -> Supernetwork:
    """Two copies of ResNet-20, one damaged near its output and one near its input, and stitches that change nothing.

    What takes features of the first and layers of the second is the intact network, better than both and the ensemble.
    """
    parents, generator = [], torch.Generator().manual_seed(0)
    for damaged, scale in (("layer3", 0.4), ("layer1", 0.4)):
        parent = model(PARENTS[0])
        for name, value in parent.net.named_parameters():
            if name.startswith(damaged):
                value += scale * value.std() * torch.randn(value.shape, generator=generator).to(value.device)
        parents.append(Parent(parent, "block"))
    net = join((parents[0], parents[1]))
    for gene, stitch in enumerate(net.stitches):
        set_affine(stitch, torch.eye(net.channels(gene)), torch.zeros(net.channels(gene)))
    return net.to(the_device())
