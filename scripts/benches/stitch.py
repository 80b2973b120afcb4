"""What offspring cost to measure, and stitches to train, against one after the other."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.functional import pil_to_tensor

from benches.timing import clock, compare, now, the_device
from recombine import models
from recombine.core.types import Batch, Row
from recombine.data import Data, open_data
from recombine.run.run import Run
from recombine.run.signals import StopSignals
from recombine.run.tracking import Tracker
from recombine.stitch.evaluator import Evaluator
from recombine.stitch.execution_plan import ExecutionPlan
from recombine.stitch.matching import match
from recombine.stitch.offspring import export
from recombine.stitch.parents import Parent
from recombine.stitch.search.ga import FamilialGa
from recombine.stitch.search.population import initial_population
from recombine.stitch.search.space import Budget, Evaluations, Space
from recombine.stitch.stitch_init import initialise
from recombine.stitch.stitches import matching_problem
from recombine.stitch.supernetwork import StitchPoint, Supernetwork
from recombine.stitch.training import StitchTraining
from recombine.stitch.vertices import Operand

__all__ = ["measure"]

MODELS = Path(__file__).parents[2] / "config" / "model"
PARENTS = ("resnet20", "resnet8_mlcommons")
OFFSPRING, IMAGES, BATCH = 32, 64, 32
REQUESTS, POPULATION = 160, 32


def measure() -> Iterator[Row]:
    """Offspring of two CIFAR-10 networks of RECOMBINE_DATA on its images; without it random weights and noise."""
    with tempfile.TemporaryDirectory() as folder, closing(_data(folder)) as data:
        device = the_device()
        where = {"dir": Path(folder), "id": "b", "group": "b", "entry": "bench", "cache": Path(folder), "seed": 0}
        run = Run(**where, device=device, tracker=Tracker.silent(), signals=StopSignals())
        net = _supernetwork(data)
        search = data.loader("test", BATCH, train=False, indices=data.indices("test")[:IMAGES])
        together, alone = (Evaluator(net, search, run, precision="fp32", eval_batch_networks=n) for n in (OFFSPRING, 1))
        files = Files(together, Path(folder))
        yield from _offspring(net, together, alone, files)
        yield from _searches(net, together, alone, files)
        yield _training(net, next(data.loader("train", BATCH, train=True).epoch(0)))


def _offspring(net: Supernetwork, together: Evaluator, alone: Evaluator, files: Files) -> Iterator[Row]:
    """New random networks with 6.2 stitches on average: the memo knows none of them."""
    genotypes = initial_population(Space(net.alphabet), OFFSPRING, np.random.default_rng(0))
    unit = f"{clock(the_device())} for {OFFSPRING} offspring and {IMAGES} images"
    ours, apart = (partial(_measured, evaluator, genotypes) for evaluator in (together, alone))
    plain = partial(_exported, net, genotypes, files)
    yield compare("offspring, against each by itself from image files", ours, plain, unit, rounds=3)
    yield compare("offspring, gain of shared layers alone", ours, apart, unit, rounds=3)


def _searches(net: Supernetwork, together: Evaluator, alone: Evaluator, files: Files) -> Iterator[Row]:
    """The paper's GA, whose children are often networks that were measured before."""

    def forgetful(genotypes: np.ndarray) -> tuple[float, Evaluations]:
        seconds = 0.0
        for k in range(len(genotypes)):
            seconds += _measured(alone, genotypes[k : k + 1])
        return seconds, together(genotypes)

    def by_itself(genotypes: np.ndarray) -> tuple[float, Evaluations]:
        return _exported(net, genotypes, files), together(genotypes)

    def remembering(evaluator: Evaluator, genotypes: np.ndarray) -> tuple[float, Evaluations]:
        start = now(the_device())
        found = evaluator(genotypes)
        return now(the_device()) - start, found

    unit = f"{clock(the_device())} for {REQUESTS} requests and {IMAGES} images"
    ours = partial(_searched, net, partial(remembering, together), together)
    one = partial(_searched, net, partial(remembering, alone), alone)
    yield compare("GA, gain of the memo alone", one, partial(_searched, net, forgetful), unit, rounds=1)
    plain = partial(_searched, net, by_itself)
    yield compare("GA, against each by itself from image files", ours, plain, unit, rounds=1)


def _searched(
    net: Supernetwork, answer: Callable[[np.ndarray], tuple[float, Evaluations]], fresh: Evaluator | None = None
) -> float:
    """Seconds that the answers of a search took; `fresh` forgets what it knows first."""
    if fresh is not None:
        fresh.memo.clear()
    spent = []

    def evaluate(genotypes: np.ndarray) -> Evaluations:
        seconds, found = answer(genotypes)
        spent.append(seconds)
        return found

    FamilialGa(Space(net.alphabet), Budget(REQUESTS), population=POPULATION, steering=0.0).run(evaluate)
    return sum(spent)


def _measured(evaluator: Evaluator, genotypes: np.ndarray) -> float:
    """Seconds that the evaluator takes when it remembers nothing."""
    evaluator.memo.clear()
    start = now(the_device())
    evaluator(genotypes)
    return now(the_device()) - start


class Files(Dataset):
    """The images of an evaluator as PNG files, decoded one by one."""

    def __init__(self, evaluator: Evaluator, folder: Path) -> None:
        self.samples = []
        for images, labels in evaluator.batches:
            for image, label in zip(images.cpu().permute(0, 2, 3, 1).numpy(), labels.tolist(), strict=True):
                self.samples.append((folder / f"{len(self.samples)}.png", label))
                Image.fromarray(np.ascontiguousarray(image)).save(self.samples[-1][0])

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        path, label = self.samples[index]
        return pil_to_tensor(Image.open(path).convert("RGB")), label


@torch.no_grad()
def _exported(net: Supernetwork, genotypes: np.ndarray, files: Files) -> float:
    """Seconds that offspring take one after the other, each a pruned copy with a loader of its own.

    The authors' evaluator works so; what the copying takes is left out.
    """
    device, seconds = the_device(), 0.0
    for genotype in genotypes:
        model = export(net, genotype).to(device)
        start = now(device)
        right = torch.zeros((), device=device)
        for images, labels in DataLoader(files, BATCH):
            right += (model(images.to(device)).argmax(1) == labels.to(device)).sum()
        right.item()
        seconds += now(device) - start
    return seconds


def _training(net: Supernetwork, batch: Batch) -> Row:
    """One step of all stitches, from one pass of both parents or from one pass for each stitch up to where it reads."""
    untouched = np.zeros_like(net.genotype)
    genes = range(len(net.stitches))
    operands = [[Operand(net.joined[gene ^ 1]), Operand(net.joined[gene])] for gene in genes]
    plans = [ExecutionPlan(net.graph, [untouched], each) for each in operands]
    method = StitchTraining(net)
    images = net.preprocess(batch.images)

    def ours() -> float:
        optimizer = torch.optim.AdamW(net.stitches.parameters(), 1e-3)
        start = now(images.device)
        method(batch).loss.backward()
        optimizer.step()
        return now(images.device) - start

    def plain() -> float:
        optimizers = [torch.optim.AdamW(stitch.parameters(), 1e-3) for stitch in net.stitches]
        start = now(images.device)
        for stitch, plan, optimizer in zip(net.stitches, plans, optimizers, strict=True):
            with torch.no_grad():
                ((source, target),) = plan.run(net.compute, images)
            F.mse_loss(stitch(source), target).backward()
            optimizer.step()
        return now(images.device) - start

    return compare(
        f"{len(net.stitches)} stitches in one pass, against one after the other",
        ours,
        plain,
        f"{clock(images.device)} per {len(images)} images",
        rounds=3,
    )


def _data(folder: str) -> Data:
    """CIFAR-10 of RECOMBINE_DATA, else noise of its shape."""
    root = os.environ.get("RECOMBINE_DATA")
    node = {"name": "cifar10", "download": False} if root else {"name": "fake", "classes": 10}
    where = {"data_root": root or "", "cache_root": folder, "seed": 0, "device": the_device()}
    return open_data(node, loader={"kind": "torch", "workers": 0}, **where)


def _supernetwork(data: Data) -> Supernetwork:
    """Both parents with all their pairs, the stitches at their least squares optimum."""
    root = os.environ.get("RECOMBINE_DATA")
    nodes = [yaml.safe_load((MODELS / f"{name}.yaml").read_text()) for name in PARENTS]
    weights = {"weights_root": Path(root) / "weights" / "cifar10"} if root else {}
    nodes = nodes if root else [{**node, "weights": None} for node in nodes]
    parents = tuple(Parent(models.build(node, classes=10, **weights).to(the_device()).eval()) for node in nodes)
    pairs = [
        StitchPoint(parents[0].nodes[i], parents[1].nodes[j])
        for i, j in match(matching_problem(parents)).pairs.tolist()
    ]
    torch.manual_seed(0)
    net = Supernetwork(parents, pairs).to(the_device())
    initialise(net, "lstsq", data.loader("train", BATCH, train=True), 4 * BATCH)
    return net
