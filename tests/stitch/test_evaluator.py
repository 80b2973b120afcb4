"""Evaluating offspring: correctly, once for each network, and with a memo that survives an interruption."""

from __future__ import annotations

import copy
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
from recombine.stitch.evaluator import OffspringEvaluator
from recombine.stitch.layers import set_affine
from recombine.stitch.measuring import predict_networks
from recombine.stitch.offspring import export
from recombine.stitch.pareto import front
from recombine.stitch.racing import NetworkScores, Rivals
from recombine.stitch.search.random import RandomSearch
from recombine.stitch.search.space import Budget, Space, references
from recombine.stitch.tasks import Classification
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


def make_evaluator(net, many, run, **options) -> OffspringEvaluator:
    return OffspringEvaluator(net, Labelled(many, 8), run, **{"precision": "fp32"} | options)


def scores(evaluator: OffspringEvaluator, genotype: np.ndarray) -> NetworkScores:
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


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_is_searched_is_what_is_reported(net, many, run, precision):
    options = {"precision": precision, "calibration": [many[:8], many[8:16]], "eval_batch_networks": 3}
    evaluator, genotypes = make_evaluator(net, many, run, **options), random_genotypes(net, 4)
    evaluator(genotypes)
    reported = predict_networks(net, genotypes, Labelled(many, 8), **options)
    losses = [float(F.cross_entropy(one.logits, one.labels)) for one in reported]
    assert [scores(evaluator, genotype).loss for genotype in genotypes] == pytest.approx(losses, rel=1e-5)


def test_loss_may_be_the_objective(net, many, run):
    evaluator = make_evaluator(net, many, run, performance="loss")
    genotypes = random_genotypes(net, 3)
    found = evaluator(genotypes)
    assert found.objectives[:, 0].tolist() == [scores(evaluator, genotype).loss for genotype in genotypes]


def test_a_network_is_evaluated_once_under_any_genotype(net, many, run, monkeypatch):
    evaluator, measured = make_evaluator(net, many, run), []
    inner = evaluator._scores
    monkeypatch.setattr(evaluator, "_scores", lambda genotypes: measured.extend(genotypes) or inner(genotypes))
    genotypes = random_genotypes(net, 12)
    equivalent = np.where([net.active(g) for g in genotypes], genotypes, 1 - np.minimum(genotypes, 1)).astype(np.int8)
    first, second = evaluator(genotypes), evaluator(np.concatenate([equivalent, genotypes]))
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


def test_the_next_process_reads_the_memo(net, many, run, monkeypatch):
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


def test_other_stitches_or_images_have_no_memo(net, many, run):
    file = run.dir / "evaluations.jsonl"
    genotypes = random_genotypes(net, 4)
    make_evaluator(net, many, run, file=file)(genotypes)
    assert make_evaluator(net, many, run, file=file).memo
    assert not make_evaluator(net, many, run, file=file, precision="bf16").memo
    make_evaluator(net, many, run, file=file)(genotypes)
    assert not make_evaluator(net, many[:20], run, file=file).memo
    make_evaluator(net, many, run, file=file)(genotypes)
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


def test_a_pass_that_was_cut_off_is_repeated_as_a_whole(net, many, run):
    file = run.dir / "evaluations.jsonl"
    make_evaluator(net, many, run, file=file, eval_batch_networks=4)(random_genotypes(net, 8))
    header, *lines = file.read_text().splitlines()
    file.write_text("\n".join([header, *lines[:6], lines[6][:20]]))
    assert len(make_evaluator(net, many, run, file=file).memo) == 4


@pytest.mark.parametrize("limit", ["max_cost", "max_parameters"])
def test_offspring_beyond_a_limit_are_not_run(net, many, run, limit):
    genotypes = np.concatenate([references(len(net.genotype)), random_genotypes(net, 20)])
    size = np.array([net.cost(g) if limit == "max_cost" else net.num_parameters(g) for g in genotypes])
    evaluator = make_evaluator(net, many, run, **{limit: int(np.median(size[3:]))})
    found = evaluator(genotypes)
    stitched = np.array([net.phenotype(genotype)[:-1].any() for genotype in genotypes])
    within = (size <= np.median(size[3:])) | ~stitched
    assert 3 < within.sum() < 23 and np.array_equal(np.isfinite(found.objectives).all(1), within)
    assert np.array_equal(found.measured, within)


def test_parameters_are_those_of_the_offspring_by_itself(net):
    for genotype in [*references(len(net.genotype)), *random_genotypes(net, 5)]:
        alone = export(net, genotype)
        assert net.num_parameters(genotype) == sum(p.numel() for p in alone.net.parameters())


# ------------------------------------------------------------------------------------------------ races


class Course(Images):
    """Images with labels that a network gives of which both parents are damaged copies, at different ends.

    What takes A's features below and B's layers above, through stitches that change nothing, is the intact network.
    """

    def __init__(self, model, joined) -> None:
        generator = torch.Generator().manual_seed(1)
        super().__init__(torch.randint(0, 256, (400, 3, 16, 16), generator=generator).to(torch.uint8), 200)
        intact = model("resnet8", 0, width=8)
        parents = [copy.deepcopy(intact) for _ in range(2)]
        with torch.no_grad():
            for parent, damaged in zip(parents, ("layer3", "layer1"), strict=True):
                for name, value in parent.net.named_parameters():
                    if name.startswith(damaged):
                        value += value.std() * torch.randn(value.shape, generator=generator)
            self.net = joined(*parents, max_matches=8)
            for gene, stitch in enumerate(self.net.stitches):
                set_affine(stitch, torch.eye(self.net.channels(gene)), torch.zeros(self.net.channels(gene)))
            logits = intact(self.images)
            self.labels = (logits - logits.mean(0)).argmax(1)
            intact.net.linear.bias -= logits.mean(0)
            for parent in self.net.nets:
                parent.linear.bias.copy_(intact.net.linear.bias)

    def epoch(self, epoch, start=0):
        for batch in super().epoch(epoch, start):
            yield batch._replace(labels=self.labels[batch.index])

    def search(self, run, budget=100, limit=None, **options):
        """The front after a search, objectives [f, 2], and the evaluator; `limit` in place of the one of its rivals."""
        evaluator = OffspringEvaluator(self.net, self, run, precision="fp32", **options)
        if limit is not None:
            evaluator.rivals.limit = limit
        search = RandomSearch(
            Space(self.net.alphabet, 1.5), Budget(budget), population=16
        )  # asks the same whatever it hears
        members = search.run(evaluator).members
        return members.objectives[front(members.objectives)], evaluator


@pytest.fixture(scope="module")
def course(model, joined):
    return Course(model, joined)


def used(evaluator) -> float:
    """Part of all images that the networks saw."""
    return np.mean([score.images for score in evaluator.memo.values()]) / evaluator.samples


def test_races_find_the_same_front_with_fewer_images(course, run):
    """And the course can fail: where whatever differs from its rival is dropped, good offspring are lost."""
    whole, everything = course.search(run)
    assert used(everything) == 1
    raced, evaluator = course.search(run, racing_alpha=0.01)
    assert used(evaluator) < 0.75
    assert raced == pytest.approx(whole)
    parents = everything(references(len(course.net.genotype))).objectives
    assert whole[0, 0] < parents[:, 0].min(), "an offspring is better than both parents and their ensemble"
    hasty, _ = course.search(run, racing_alpha=0.01, limit=-100.0)
    assert hasty[0, 0] > whole[0, 0]


def test_estimates_are_near_and_enter_no_archive(course, run):
    _, evaluator = course.search(run, 60, racing_alpha=0.01)
    dropped = [key for key, score in evaluator.memo.items() if score.images < 400]
    genotypes = np.stack([np.frombuffer(key, np.int8) for key in dropped])
    found = evaluator(genotypes)
    assert not found.measured.any() and len(dropped) > 5
    error = found.accuracy - OffspringEvaluator(course.net, course, run, precision="fp32")(genotypes).accuracy
    assert abs(error.mean()) < 0.1 and abs(error).max() < 0.4  # of 32 images; what was dropped was unlucky on them
    search = RandomSearch(Space(course.net.alphabet), Budget(9), population=4)
    assert not search._evaluate(genotypes[:5], evaluator).archived.any() and len(search.archive) == 0


def test_an_interrupted_race_takes_the_same_course(course, run):
    """Its rivals are measured again; those that were dropped stay dropped."""
    options = {"racing_alpha": 0.01, "eval_batch_networks": 8}
    whole, straight = course.search(run, 60, **options, file=run.dir / "whole.jsonl")
    lines = (run.dir / "whole.jsonl").read_text().splitlines(keepends=True)
    (run.dir / "cut.jsonl").write_text("".join(lines[: len(lines) // 2]))
    again, resumed = course.search(run, 60, **options, file=run.dir / "cut.jsonl")
    assert np.array_equal(again, whole) and resumed.memo == straight.memo


def test_a_rival_is_the_best_that_costs_no_more():
    rivals = Rivals(0.01, Classification().differences)
    assert rivals.best([5]).tolist() == [-1]
    rivals.add(np.array([[-0.9, 30.0], [-0.8, 10.0], [-0.7, 20.0]]), torch.zeros(3, 4, 1))
    assert rivals.objectives.tolist() == [[-0.9, 30.0], [-0.8, 10.0]]
    assert rivals.best([5, 10, 29, 30, 99]).tolist() == [-1, 1, 1, 0, 0]


def test_equal_networks_are_dropped_no_more_often_than_alpha():
    """Networks that are right as often as their rival, on other images: z > 3.03 in at most 1 % of the comparisons."""
    rivals = Rivals(0.01, Classification().differences)
    generator = torch.Generator().manual_seed(0)
    rivals.add(np.array([[-0.5, 1.0]]), (torch.rand(1, 64, 1, generator=generator) < 0.5).float())
    _, dropped = rivals.compare((torch.rand(20_000, 64, 1, generator=generator) < 0.5).float(), np.zeros(20_000, int))
    expected = (rivals.scores[0][:, 0] - (torch.rand(20_000, 64, generator=generator) < 0.5).float()).double()
    z = expected.sum(1) / expected.square().sum(1).sqrt()
    assert (
        dropped.mean() == pytest.approx(float((z > rivals.limit).double().mean()), abs=0.003) and dropped.mean() < 0.01
    )


def test_a_search_is_repeated_from_the_file(net, many, run):
    def searched(evaluator):
        search = RandomSearch(Space(net.alphabet, 2.0), Budget(40), seed=3, population=8)
        return search.run(evaluator).members

    file = run.dir / "evaluations.jsonl"
    first, again = (searched(make_evaluator(net, many, run, file=file)) for _ in range(2))
    assert np.array_equal(first.genotypes, again.genotypes) and np.array_equal(first.objectives, again.objectives)
