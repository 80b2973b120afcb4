"""What learning a clone costs: all positions at once, and local models that are remembered."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from benches.timing import clock, compare, now, the_device
from recombine import models as zoo
from recombine.core.types import Batch, Row
from recombine.engine.method import Method
from recombine.models import Model
from recombine.models.graph import trace
from recombine.pnc.clone.branch import Branch, linear_head
from recombine.pnc.clone.candidates import Candidates
from recombine.pnc.clone.positions import positions
from recombine.pnc.local.neighbourhood import Neighbourhood
from recombine.pnc.local.surrogates import LimeModels, Refitted
from recombine.pnc.training import Insertion, Localization

__all__ = ["measure"]

SIDE, CLASSES, CLONED = 32, 10, [0, 1]
BATCH = 64 if the_device().type == "cuda" else 4
NEAR = Neighbourhood()
SHARED = {"seed": 0, "score_lr": 0.02}


def measure() -> Iterator[Row]:
    """A step of each stage for all positions of a ResNet-20, and one of localization with either local models."""
    device = the_device()
    unit = f"{clock(device)} per step"
    pair = tuple(_network(seed, device) for seed in (0, 1))
    batch = _batch(device)
    every = [branch.position.number for branch in _candidates(*pair).branches]
    masked = [branch.position.number for branch in _candidates(*pair).branches if len(branch.gates)]
    remembered = LimeModels.fit(pair[1], _Once(batch), CLONED, NEAR, 0)
    for name, make, numbers in (("localizing", _localization, masked), ("inserting", _insertion, every)):
        together = [make(_candidates(*pair, numbers), remembered)]
        alone = [make(_candidates(*pair, [number]), remembered) for number in numbers]
        case = f"{name}, {len(numbers)} positions in one pass against one after another"
        yield compare(case, _timed(together, batch), _timed(alone, batch), unit, rounds=2)
    refitted = Refitted(pair[1].net, torch.tensor(CLONED, device=device), NEAR, 0)
    ours, plain = (_localization(_candidates(*pair, masked), local) for local in (remembered, refitted))
    case = "localizing, local models remembered against fitted in every step"
    yield compare(case, _timed([ours], batch), _timed([plain], batch), unit, rounds=2)


def _network(seed: int, device: torch.device) -> Model:
    node = {"name": "resnet20", "weights": None, "size": SIDE}
    return zoo.build(node, classes=CLASSES, seed=seed).eval().to(device)


def _batch(device: torch.device) -> Batch:
    """Noise, the second half of classes to clone."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (BATCH, 3, SIDE, SIDE), dtype=torch.uint8, generator=generator)
    number = torch.arange(BATCH)
    labels = torch.where(number < BATCH // 2, number % CLASSES, CLASSES + number % len(CLONED))
    return Batch(*(value.to(device) for value in (images, labels, number)))


class _Once:
    """A loader of one batch."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def epoch(self, epoch: int) -> Iterator[Batch]:
        yield self.batch


def _candidates(target: Model, source: Model, numbers: Sequence[int] | None = None) -> Candidates:
    """Branches at the positions of these numbers, or at all."""
    host, graph = trace(target.net, SIDE), trace(source.net, SIDE)
    branches = [
        Branch(position, graph, CLONED, linear_head(host), adapter="conv1x1_bn", head="rows")
        for position in positions(host, graph)
        if numbers is None or position.number in numbers
    ]
    return Candidates(target, source, (host, graph), branches).to(the_device())


def _localization(net: Candidates, local: Callable) -> Method:
    options = {"steps": 1000, "keep_ratio": 0.5, "anneal": True, "cloned": None}
    return Localization(net, NEAR, local, branches=net.branches, **options, **SHARED)


def _insertion(net: Candidates, local: Callable) -> Method:
    options = {"loss": "xe", "match_weight": 1.0, "loc_weight": 0.1, "keep_weight": 1.0, "temperature": 2.0}
    return Insertion(net, NEAR, local, originals=BATCH // 2, **options, **SHARED)


def _timed(methods: Sequence[Method], batch: Batch) -> Callable[[], float]:
    """Seconds of a step of all methods."""
    steps = [(method.train(), torch.optim.Adam(method.parameter_groups(), 1e-3)) for method in methods]

    def seconds() -> float:
        start = now(batch.images.device)
        for method, optimizer in steps:
            method(batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return now(batch.images.device) - start

    return seconds
