"""What learning a clone costs: all positions at once, remembered local models, and only what is needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch

from benches.timing import clock, compare, now, the_device
from recombine import models as zoo
from recombine.core.types import Batch, Row
from recombine.engine.method import Method
from recombine.models import Model
from recombine.models.graph import trace
from recombine.pnc.clone.branch import Branch, find_linear_head
from recombine.pnc.clone.candidates import Candidates
from recombine.pnc.clone.positions import clones_layers, find_positions, find_probe
from recombine.pnc.local.neighbourhood import Neighbourhood
from recombine.pnc.local.surrogates import LimeModels, RefittedLimeModels
from recombine.pnc.stages import Insertion, Localization

__all__ = ["measure"]

SIDE, CLASSES, CLONED = 32, 10, [0, 1]
BATCH = 64 if the_device().type == "cuda" else 4
NEAR = Neighbourhood()
BEFORE = Neighbourhood(num_fit=256, num_train=8)
"""The neighbourhood of version 0.2.0, in which every position was trained."""
SHARED = {"seed": 0, "score_lr": 0.02}


def measure() -> Iterator[Row]:
    """A step of each stage for all positions of a ResNet-20, then what the defaults leave out."""
    device = the_device()
    unit = f"{clock(device)} per step"
    pair = tuple(_network(seed, device) for seed in (0, 1))
    batch = _batch(device)
    *every, last = (branch.position.number for branch in _candidates(*pair).branches)
    masked = [branch.position.number for branch in _candidates(*pair).branches if len(branch.channel_masks)]
    remembered = LimeModels.fit(pair[1], _Once(batch), CLONED, NEAR, 0)
    for name, make, numbers in (("localizing", _localization, masked), ("inserting", _insertion, every)):
        together = [make(_candidates(*pair, [*numbers, last]), remembered)]
        alone = [make(_candidates(*pair, [number, last]), remembered) for number in numbers]
        case = f"{name}, {len(numbers)} positions in one pass against one after another"
        yield compare(case, _timed(together, batch), _timed(alone, batch), unit, rounds=2)
    refitted = RefittedLimeModels(pair[1].net, torch.tensor(CLONED, device=device), NEAR, 0)
    ours, plain = (_localization(_candidates(*pair, [*masked, last]), local) for local in (remembered, refitted))
    case = "localizing, local models remembered against fitted in every step"
    yield compare(case, _timed([ours], batch), _timed([plain], batch), unit, rounds=2)
    plain = _localization(_candidates(*pair, [*masked, last]), None)
    case = "localizing, local models remembered against the source itself in every step"
    yield compare(case, _timed([ours], batch), _timed([plain], batch), unit, rounds=2)
    for name, make, numbers in (("localizing", _localization, masked), ("inserting", _insertion, every)):
        ours = make(_candidates(*pair, [*numbers[:2], last]), remembered)
        plain = make(_candidates(*pair, [*numbers, last]), remembered, near=BEFORE)
        case = f"{name}, 2 positions with {NEAR.num_train} neighbours against all with {BEFORE.num_train}"
        yield compare(case, _timed([ours], batch), _timed([plain], batch), unit, rounds=2)
    fits = [partial(LimeModels.fit, pair[1], _Once(batch), CLONED, near, 0) for near in (NEAR, BEFORE)]
    case = f"local models of a batch, {NEAR.num_fit} neighbours against {BEFORE.num_fit}"
    yield compare(case, *(_clocked(fit, device) for fit in fits), f"{clock(device)} per batch", rounds=2)


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
    """Branches at the positions of these numbers, or at all but 0 that clone a layer, and the probe."""
    host, graph = trace(target.net, SIDE), trace(source.net, SIDE)
    there = find_positions(host, graph)
    used = [*(position for position in there[1:] if clones_layers(graph, position)), find_probe(host, graph)]
    head = find_linear_head(host)
    branches = [
        Branch(position, graph, CLONED, head, adapter="conv1x1_bn", head="rows")
        for position in used
        if numbers is None or position.number in numbers
    ]
    return Candidates(target, source, (host, graph), branches).to(the_device())


def _localization(net: Candidates, local: Callable | None, near: Neighbourhood = NEAR) -> Method:
    options = {"steps": 1000, "keep_ratio": 0.5, "anneal": True, "cloned": None}
    return Localization(net, near, local, branches=net.branches, **options, **SHARED)


def _insertion(net: Candidates, local: Callable, near: Neighbourhood = NEAR) -> Method:
    options = {"loss": "xe", "match_weight": 1.0, "loc_weight": 0.1, "keep_weight": 1.0, "temperature": 2.0}
    return Insertion(net, near, local, target_samples=BATCH // 2, refine=True, **options, **SHARED)


def _timed(methods: Sequence[Method], batch: Batch) -> Callable[[], float]:
    """Seconds of a step of all methods."""
    steps = [(method.train(), torch.optim.Adam(method.parameter_groups(), 1e-3)) for method in methods]

    def step() -> None:
        for method, optimizer in steps:
            method(batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    return _clocked(step, batch.images.device)


def _clocked(work: Callable[[], object], device: torch.device) -> Callable[[], float]:
    """Seconds that it takes."""

    def seconds() -> float:
        start = now(device)
        work()
        return now(device) - start

    return seconds
