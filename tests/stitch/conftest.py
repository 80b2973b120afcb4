"""Two small parents that differ in everything but the task, joined with untrained stitches."""

from __future__ import annotations

import pytest
import torch

from recombine import models
from recombine.models import Model
from recombine.stitch.matching import match
from recombine.stitch.parents import Parent
from recombine.stitch.settings import MatchingSettings
from recombine.stitch.stitches import matching_problem
from recombine.stitch.supernetwork import StitchPoint, Supernetwork
from tests.networks import shaken

NORMAL = {"mean": [0.5] * 3, "std": [0.25] * 3}


@pytest.fixture(scope="session")
def model():
    """model(name, seed, **options): a network of the zoo with random weights for 16 px and four classes."""

    def make(name: str, seed: int, size: int = 16, **options) -> Model:
        node = {"name": name, "weights": None, "classes": 4, "size": size, **NORMAL, **options}
        return shaken(models.build(node, classes=4, seed=seed))

    return make


@pytest.fixture(scope="session")
def joined():
    """joined(a, b): the supernetwork of two models with all pairs that match, its stitches from a fixed seed."""

    def make(a: Model, b: Model, granularity: str = "op", max_matches: int | None = None) -> Supernetwork:
        parents = (Parent(a, granularity), Parent(b, granularity))
        found = match(matching_problem(parents), MatchingSettings(max_matches=max_matches))
        pairs = [StitchPoint(parents[0].nodes[i], parents[1].nodes[j]) for i, j in found.pairs.tolist()]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return Supernetwork(parents, pairs).eval()

    return make


@pytest.fixture
def net(joined, model) -> Supernetwork:
    """A residual and a plain network with all their pairs."""
    return joined(model("resnet8", 0), model("cnn", 1, widths=[8, 12, 16]))


@pytest.fixture
def images() -> torch.Tensor:
    """uint8 images of 16 px that differ."""
    return torch.randint(0, 256, (6, 3, 16, 16), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
