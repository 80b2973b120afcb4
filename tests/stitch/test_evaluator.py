"""Measuring offspring: right, once for each network, and remembered over an interruption."""

from __future__ import annotations

import json
import signal

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from recombine.core.errors import Interrupted
from recombine.run.run import Run
from recombine.run.signals import StopSignals
from recombine.run.tracking import Tracker
from recombine.stitch.evaluator import Evaluator, NetworkScores
from recombine.stitch.search.random import RandomSearch
from recombine.stitch.search.space import Budget, Space
from recombine.stitch.search.sweep import references
from tests.stitch.test_training import Images


class Labelled(Images):
    """Images with labels 0..3, read one batch after the other."""

    def epoch(self, epoch, start=0):
        for batch in super().epoch(epoch, start):
            yield batch._replace(labels=batch.index % 4)


@pytest.fixture
def many():
    return torch.randint(0, 256, (30, 3, 16, 16), generator=torch.Generator().manual_seed(7)).to(torch.uint8)


@pytest.fixture
def run(tmp_path):
    where = {"dir": tmp_path, "id": "r", "group": "g", "entry": "stitch", "cache": tmp_path}
    return Run(**where, seed=0, device=torch.device("cpu"), tracker=Tracker.silent(), signals=StopSignals())


def make_evaluator(net, many, run, **options) -> Evaluator:
    return Evaluator(net, Labelled(many, 8), run, precision="fp32", **options)


def scores(evaluator: Evaluator, genotype: np.ndarray) -> NetworkScores:
    return evaluator.memo[evaluator.net.phenotype(genotype).tobytes()]


def random_genotypes(net, count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, net.alphabet, (count, len(net.alphabet))).astype(np.int8)


@torch.no_grad()
def test_scores_are_those_of_each_network_alone(net, many, run):
    evaluator = make_evaluator(net, many, run, eval_batch_networks=3)
    genotypes = random_genotypes(net, 10)
    found = evaluator(genotypes)
    labels = torch.arange(len(many)) % 4
    for k, genotype in enumerate(genotypes):
        net.set_genotype(genotype)
        logits = net(many)
        right = float((logits.argmax(1) == labels).float().mean())
        assert found.accuracy[k] == pytest.approx(right)
        assert found.objectives[k].tolist() == pytest.approx([-right, net.cost(genotype)])
        assert scores(evaluator, genotype).loss == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-5)
        assert (found.active[k] == net.active(genotype)).all()


def test_loss_may_be_the_objective(net, many, run):
    evaluator = make_evaluator(net, many, run, performance="loss")
    genotypes = random_genotypes(net, 3)
    found = evaluator(genotypes)
    assert found.objectives[:, 0].tolist() == [scores(evaluator, genotype).loss for genotype in genotypes]


def test_a_network_is_measured_once_whatever_it_is_called(net, many, run, monkeypatch):
    evaluator, measured = make_evaluator(net, many, run), []
    inner = evaluator._scores
    monkeypatch.setattr(evaluator, "_scores", lambda genotypes: measured.extend(genotypes) or inner(genotypes))
    genotypes = random_genotypes(net, 12)
    other_words = np.where([net.active(g) for g in genotypes], genotypes, 1 - np.minimum(genotypes, 1)).astype(np.int8)
    first, second = evaluator(genotypes), evaluator(np.concatenate([other_words, genotypes]))
    assert len(measured) == len({net.phenotype(g).tobytes() for g in genotypes})
    assert np.array_equal(np.tile(first.objectives, (2, 1)), second.objectives)


def test_networks_without_finite_logits_are_worst(net, many, run):
    genotype = references(len(net.alphabet))[0]
    with torch.no_grad():
        net.stitches[0].bias.fill_(float("nan"))
    genotype[0] = 1
    evaluator = make_evaluator(net, many, run, performance="loss", file=run.dir / "e.jsonl")
    assert net.active(genotype)[0]
    assert evaluator(genotype[None]).objectives[0, 0] == np.inf and scores(evaluator, genotype).accuracy == 0
    again = make_evaluator(net, many, run, performance="loss", file=run.dir / "e.jsonl")
    assert again.memo == evaluator.memo


def test_what_was_measured_is_remembered_by_the_next_process(net, many, run, monkeypatch):
    file = run.dir / "evaluations.jsonl"
    genotypes = random_genotypes(net, 9)
    first = make_evaluator(net, many, run, file=file)(genotypes)
    with file.open("a") as stream:
        stream.write('{"on": [1, 2], "outp')  # killed while it wrote
    again = make_evaluator(net, many, run, file=file)
    monkeypatch.setattr(again, "_scores", lambda genotypes: pytest.fail("measured twice") if genotypes else [])
    assert np.array_equal(again(genotypes).objectives, first.objectives)
    lines = file.read_text().splitlines()
    assert all(json.loads(line) for line in lines) and len(lines) == 1 + len(again.memo)


def test_other_stitches_or_images_are_measured_anew(net, many, run):
    file = run.dir / "evaluations.jsonl"
    genotypes = random_genotypes(net, 4)
    make_evaluator(net, many, run, file=file)(genotypes)
    assert not make_evaluator(net, many[:20], run, file=run.dir / "other.jsonl").memo
    with torch.no_grad():
        net.stitches[0].bias.add_(1)
    assert not make_evaluator(net, many, run, file=file).memo


def test_a_signal_stops_between_passes_and_loses_nothing(net, many, run):
    file = run.dir / "evaluations.jsonl"
    evaluator = make_evaluator(net, many, run, file=file, eval_batch_networks=2)
    genotypes = random_genotypes(net, 8)
    inner, passes = evaluator._scores, []

    def stopped(some):
        passes.append(len(some))
        if len(passes) == 2:
            run.signals.received = signal.SIGTERM
        return inner(some)

    evaluator._scores = stopped
    with pytest.raises(Interrupted):
        evaluator(genotypes)
    run.signals.received = None
    assert len(make_evaluator(net, many, run, file=file).memo) == 4


def test_a_search_is_repeated_from_the_file(net, many, run):
    def searched(evaluator):
        search = RandomSearch(Space(net.alphabet, 2.0), Budget(40), seed=3, population=8)
        return search.run(evaluator).members

    file = run.dir / "evaluations.jsonl"
    first, again = (searched(make_evaluator(net, many, run, file=file)) for _ in range(2))
    assert np.array_equal(first.genotypes, again.genotypes) and np.array_equal(first.objectives, again.objectives)
