"""The cost of evaluating offspring and of training stitches, against one after the other."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from itertools import chain
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
from recombine.stitch.evaluator import OffspringEvaluator
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

__all__ = ["PARENTS", "join", "measure", "model", "open_images", "silent_run"]

MODELS = Path(__file__).parents[2] / "config" / "model"
PARENTS = ("resnet20", "resnet8_mlcommons")
OFFSPRING, IMAGES, BATCH = 32, 64, 32
REQUESTS, POPULATION = 160, 32


def measure() -> Iterator[Row]:
    """Offspring of two CIFAR-10 networks of RECOMBINE_DATA on its images; without it random weights and noise."""
    with tempfile.TemporaryDirectory() as folder, closing(open_images(folder)) as data:
        run = silent_run(folder)
        net = _supernetwork(data)
        search = data.loader("test", BATCH, train=False, indices=data.indices("test")[:IMAGES])
        together, alone = (
            OffspringEvaluator(net, search, run, precision="fp32", eval_batch_networks=n) for n in (OFFSPRING, 1)
        )
        files = Files(together, Path(folder))
        yield from _offspring(net, together, alone, files)
        yield from _searches(net, together, alone, files)
        yield _training(net, next(data.loader("train", BATCH, train=True).epoch(0)))


def _offspring(
    net: Supernetwork, together: OffspringEvaluator, alone: OffspringEvaluator, files: Files
) -> Iterator[Row]:
    """New random networks with 6.2 stitches on average: the memo knows none of them."""
    genotypes = initial_population(Space(net.alphabet, 6.2), OFFSPRING, np.random.default_rng(0))
    unit = f"{clock(the_device())} for {OFFSPRING} offspring and {IMAGES} images"
    ours, apart = (partial(_time_evaluator, evaluator, genotypes) for evaluator in (together, alone))
    plain = partial(_time_exported, net, genotypes, files)
    yield compare("offspring, against each by itself from image files", ours, plain, unit, rounds=3)
    yield compare("offspring, gain of shared layers alone", ours, apart, unit, rounds=3)


def _searches(
    net: Supernetwork, together: OffspringEvaluator, alone: OffspringEvaluator, files: Files
) -> Iterator[Row]:
    """The paper's GA, whose children are often networks that were evaluated before."""

    def without_memo(genotypes: np.ndarray) -> tuple[float, Evaluations]:
        seconds = 0.0
        for k in range(len(genotypes)):
            seconds += _time_evaluator(alone, genotypes[k : k + 1])
        return seconds, together(genotypes)

    def exported(genotypes: np.ndarray) -> tuple[float, Evaluations]:
        return _time_exported(net, genotypes, files), together(genotypes)

    def with_memo(evaluator: OffspringEvaluator, genotypes: np.ndarray) -> tuple[float, Evaluations]:
        start = now(the_device())
        found = evaluator(genotypes)
        return now(the_device()) - start, found

    unit = f"{clock(the_device())} for {REQUESTS} requests and {IMAGES} images"
    ours = partial(_time_search, net, partial(with_memo, together), together)
    one = partial(_time_search, net, partial(with_memo, alone), alone)
    yield compare("GA, gain of the memo alone", one, partial(_time_search, net, without_memo), unit, rounds=1)
    plain = partial(_time_search, net, exported)
    yield compare("GA, against each by itself from image files", ours, plain, unit, rounds=1)


def _time_search(
    net: Supernetwork, timed: Callable[[np.ndarray], tuple[float, Evaluations]], fresh: OffspringEvaluator | None = None
) -> float:
    """Seconds that the evaluations of a search took; the memo of `fresh` is cleared first."""
    if fresh is not None:
        fresh.memo.clear()
    spent = []

    def evaluate(genotypes: np.ndarray) -> Evaluations:
        seconds, found = timed(genotypes)
        spent.append(seconds)
        return found

    FamilialGa(Space(net.alphabet), Budget(REQUESTS), population=POPULATION, steering=0.0).run(evaluate)
    return sum(spent)


def _time_evaluator(evaluator: OffspringEvaluator, genotypes: np.ndarray) -> float:
    """Seconds that the evaluator takes with an empty memo."""
    evaluator.memo.clear()
    start = now(the_device())
    evaluator(genotypes)
    return now(the_device()) - start


class Files(Dataset):
    """The images of an evaluator as PNG files, decoded one by one."""

    def __init__(self, evaluator: OffspringEvaluator, folder: Path) -> None:
        self.samples = []
        for images, labels in chain(*evaluator.stages):
            for image, label in zip(images.cpu().permute(0, 2, 3, 1).numpy(), labels.tolist(), strict=True):
                self.samples.append((folder / f"{len(self.samples)}.png", label))
                Image.fromarray(np.ascontiguousarray(image)).save(self.samples[-1][0])

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        path, label = self.samples[index]
        return pil_to_tensor(Image.open(path).convert("RGB")), label


@torch.no_grad()
def _time_exported(net: Supernetwork, genotypes: np.ndarray, files: Files) -> float:
    """Seconds that offspring take one after the other, each a pruned copy with its own loader, without the copying.

    This is how the authors' evaluator works.
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
    """One step of all stitches, from one pass of both parents or from one pass for each stitch up to its inputs."""
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


def silent_run(folder: str) -> Run:
    """A run that tells nobody."""
    where = {"dir": Path(folder), "id": "b", "group": "b", "entry": "bench", "cache": Path(folder), "seed": 0}
    return Run(**where, device=the_device(), tracker=Tracker.silent(), signals=StopSignals())


def open_images(folder: str) -> Data:
    """CIFAR-10 of RECOMBINE_DATA, else noise of its shape."""
    root = os.environ.get("RECOMBINE_DATA")
    node = {"name": "cifar10", "download": False} if root else {"name": "fake", "classes": 10}
    where = {"data_root": root or "", "cache_root": folder, "seed": 0, "device": the_device()}
    return open_data(node, loader={"kind": "torch", "workers": 0}, **where)


def model(name: str) -> models.Model:
    """A parent; without RECOMBINE_DATA with random weights."""
    root, node = os.environ.get("RECOMBINE_DATA"), yaml.safe_load((MODELS / f"{name}.yaml").read_text())
    weights = {"weights_root": Path(root) / "weights" / "cifar10"} if root else {}
    return models.build(node if root else {**node, "weights": None}, classes=10, **weights).to(the_device()).eval()


def join(parents: tuple[Parent, Parent]) -> Supernetwork:
    """With all their pairs."""
    found = match(matching_problem(parents)).pairs.tolist()
    torch.manual_seed(0)
    return Supernetwork(parents, [StitchPoint(parents[0].nodes[i], parents[1].nodes[j]) for i, j in found])


def _supernetwork(data: Data) -> Supernetwork:
    """Both parents with all their pairs, the stitches at their least squares optimum."""
    a, b = (Parent(model(name)) for name in PARENTS)
    net = join((a, b)).to(the_device())
    initialise(net, "lstsq", data.loader("train", BATCH, train=True), 4 * BATCH)
    return net
