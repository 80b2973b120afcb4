"""Training stitches: independent regressions on frozen features, with an optimum that is known in closed form."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from sklearn.linear_model import LinearRegression
from torch.nn import functional as F

from recombine.core.types import Batch
from recombine.models.freeze import digest
from recombine.stitch.ensemble import OutputEnsemble
from recombine.stitch.execution_plan import ExecutionPlan
from recombine.stitch.joint_training import JointTraining, sample_offspring
from recombine.stitch.layers import rows
from recombine.stitch.offspring import export
from recombine.stitch.retraining import Branches, Retraining
from recombine.stitch.search.space import references
from recombine.stitch.stitch_init import MAX_SCALE, initialise
from recombine.stitch.training import StitchTraining, relative_errors
from recombine.stitch.vertices import Operand


class Images:
    """A Loader over given images."""

    def __init__(self, images: torch.Tensor, batch_size: int = 4) -> None:
        self.images, self.batch_size, self.samples, self.digest = (
            images,
            batch_size,
            len(images),
            f"images-{len(images)}",
        )

    def __len__(self) -> int:
        return -(-self.samples // self.batch_size)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        for first in range(start * self.batch_size, self.samples, self.batch_size):
            index = torch.arange(first, min(first + self.batch_size, self.samples))
            yield Batch(self.images[index], torch.zeros(len(index), dtype=torch.long), index)

    def close(self) -> None:
        pass


@pytest.fixture
def many():
    return torch.randint(0, 256, (24, 3, 16, 16), generator=torch.Generator().manual_seed(5)).to(torch.uint8)


def batch(images: torch.Tensor) -> Batch:
    return next(Images(images, len(images)).epoch(0))


def sides(net, images, gene) -> tuple[np.ndarray, np.ndarray]:
    """Rows of sender and receiver of a stitch."""
    features = net.features(images)
    return tuple(rows(features[k], net.layout(gene)).double().numpy() for k in (gene ^ 1, gene))


def test_the_loss_is_the_sum_of_the_stitches_mean_squared_errors(net, images):
    step = StitchTraining(net)(batch(images))
    features = net.features(images)
    expected = sum(F.mse_loss(stitch(features[gene ^ 1]), features[gene]) for gene, stitch in enumerate(net.stitches))
    torch.testing.assert_close(step.loss, expected)


def test_gradients_do_not_mix_and_reach_nothing_else(net, images):
    method = StitchTraining(net).train()
    method(batch(images)).loss.backward()
    before = [stitch.weight.grad.clone() for stitch in net.stitches]
    assert all(parameter.grad is None for parameter in net.nets.parameters())
    method.zero_grad()
    with torch.no_grad():
        net.stitches[3].weight.mul_(2)
    method(batch(images)).loss.backward()
    for gene, (stitch, old) in enumerate(zip(net.stitches, before, strict=True)):
        assert torch.equal(stitch.weight.grad, old) == (gene != 3)


def test_training_lowers_the_loss_and_leaves_the_parents_bit_for_bit(net, many):
    method = StitchTraining(net).train()
    parents = [digest(part) for part in net.nets]
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], 0.02)
    losses = []
    for _ in range(30):
        step = method(batch(many))
        optimizer.zero_grad()
        step.loss.backward()
        optimizer.step()
        losses.append(float(step.loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    assert [digest(part) for part in net.nets] == parents
    assert not any(name.startswith("net.nets") for name in method.trained_state())


def test_least_squares_is_scikit_learns(net, many):
    initialise(net, "lstsq", Images(many), len(many))
    for gene in (0, 5, 2 * len(net.pairs) - 1):
        x, y = sides(net, many, gene)
        fitted = LinearRegression().fit(x, y)
        stitch = net.stitches[gene]
        given = x @ stitch.weight.detach().double().flatten(1).numpy().T + stitch.bias.detach().double().numpy()
        np.testing.assert_allclose(given, fitted.predict(x), atol=2e-3 * y.std())


@torch.no_grad()
def test_least_squares_is_the_optimum_of_training(net, many):
    """A small step in any direction makes the loss worse, but for the little that the ridge is."""
    initialise(net, "lstsq", Images(many), len(many))
    method = StitchTraining(net)
    best = float(method(batch(many)).loss)
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        moved = [torch.randn(p.shape, generator=generator) * 0.01 * p.abs().mean() for p in net.stitches.parameters()]
        for sign in (1, -2, 1):
            for parameter, step in zip(net.stitches.parameters(), moved, strict=True):
                parameter.add_(sign * step)
            assert float(method(batch(many)).loss) > best * (1 - 1e-5)


def test_least_squares_stands_dead_channels(net, many):
    """A channel that never changes has no variance, so the normal equations have no unique solution."""
    with torch.no_grad():
        for module in net.nets[0].modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight[0] = 0
    initialise(net, "lstsq", Images(many), len(many))
    assert all(parameter.isfinite().all() for parameter in net.stitches.parameters())
    errors = relative_errors(net, Images(many), "fp32")
    assert (errors <= 1 + 1e-3).all()


def test_matched_stitches_are_least_squares_with_the_variance_of_their_targets(net, many):
    initialise(net, "matched", Images(many), len(many))
    for gene in (0, 5, 2 * len(net.pairs) - 1):
        x, y = sides(net, many, gene)
        stitch = net.stitches[gene]
        given = x @ stitch.weight.detach().double().flatten(1).numpy().T + stitch.bias.detach().double().numpy()
        fitted = LinearRegression().fit(x, y).predict(x)
        scale = np.minimum(y.std(0) / np.maximum(fitted.std(0), 1e-6), MAX_SCALE)
        np.testing.assert_allclose(given, y.mean(0) + (fitted - fitted.mean(0)) * scale, atol=5e-3 * y.std())
        live = (y.std(0) > 1e-3) & (scale < MAX_SCALE)
        np.testing.assert_allclose(given.std(0)[live], y.std(0)[live], rtol=2e-2)


def test_default_is_left_alone(net, many):
    before = digest(net.stitches)
    initialise(net, "default", Images(many), len(many))
    assert digest(net.stitches) == before


def test_only_so_many_images_are_looked_at(net, many):
    few = many[:8]
    initialise(net, "lstsq", Images(many), 8)
    seen = [stitch.weight.detach().clone() for stitch in net.stitches]
    initialise(net, "lstsq", Images(few), 8)
    assert all(torch.equal(a, stitch.weight) for a, stitch in zip(seen, net.stitches, strict=True))


def test_relative_errors_by_hand(net, many):
    errors = relative_errors(net, Images(many), "fp32")
    assert errors.shape == (2 * len(net.pairs),)
    for gene in (0, 3, 2 * len(net.pairs) - 1):
        x, y = sides(net, many, gene)
        stitch = net.stitches[gene]
        given = x @ stitch.weight.detach().double().flatten(1).numpy().T + stitch.bias.detach().double().numpy()
        expected = ((given - y) ** 2).sum() / ((y - y.mean(0)) ** 2).sum()
        assert float(errors[gene]) == pytest.approx(expected, rel=1e-3)


def test_the_mean_of_each_channel_has_error_one(net, many):
    with torch.no_grad():
        for gene, stitch in enumerate(net.stitches):
            stitch.weight.zero_()
            stitch.bias.copy_(torch.from_numpy(sides(net, many, gene)[1].mean(0)))
    torch.testing.assert_close(
        relative_errors(net, Images(many), "fp32"),
        torch.ones(2 * len(net.pairs), dtype=torch.float64),
        atol=1e-3,
        rtol=0,
    )


def test_further_training_teaches_each_branch_of_an_ensemble(net, images):
    ensemble = np.zeros(len(net.alphabet), np.int8)
    ensemble[-1] = 2
    branches = Branches(export(net, ensemble, merged=False))
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    step = Retraining(branches, "all").train()(batch(images)._replace(labels=labels))
    parts = [F.cross_entropy(parent.model(images), labels) for parent in net.parents]
    torch.testing.assert_close(step.loss, sum(parts) / 2)
    net.set_genotype(ensemble)
    assert torch.equal(branches(images), net(images))
    assert not any(module.training for module in branches.modules())


def test_sampled_offspring_have_a_stitch_that_their_output_reaches(net):
    torch.manual_seed(0)
    sampled = sample_offspring(len(net.genotype), 400, 1.5)
    assert sampled[:, :-1].sum(1).mean() == pytest.approx(1.5, abs=0.1) and sampled[:, :-1].sum(1).min() == 1
    single = sampled[sampled[:, :-1].sum(1) == 1]
    assert all(net.phenotype(genotype)[:-1].any() for genotype in single)
    assert set(single[:, -1].tolist()) == {0, 1, 2}


@pytest.mark.parametrize("loss", ["joint_features", "distill", "labels"])
def test_joint_training_by_hand(net, images, loss):
    """The mean over sampled offspring, each computed by itself; only stitches and, if asked for, the share train."""
    method = JointTraining(net, loss, 3, 2.0, learn_share=loss == "distill").train()
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    torch.manual_seed(3)
    step = method(batch(images)._replace(labels=labels))
    step.loss.backward()
    trained = {name for name, parameter in method.named_parameters() if parameter.grad is not None}
    assert trained and all("stitches." in name for name in trained - {"net.ensemble.share"})
    assert ("net.ensemble.share" in trained) == (loss == "distill")
    torch.manual_seed(3)
    sampled, teacher = sample_offspring(len(net.genotype), 3, 2.0), references(len(net.genotype))[2]
    assert (sampled[:, -1] == 2).any(), "one of them is an ensemble"
    with torch.no_grad():
        if loss == "joint_features":
            features, total = net.features(images), 0.0
            for genotype in sampled:
                for gene in np.flatnonzero(net.phenotype(genotype)[:-1]):
                    operand = Operand(len(net.graph.vertices) - len(net.stitches) + int(gene))
                    value = ExecutionPlan(net.graph, [genotype], [operand]).run(net.compute, net.preprocess(images))
                    total += F.mse_loss(value[0][0], features[gene]) / features[gene].var(correction=0)
            expected = total / 3
        else:
            logits = []
            for genotype in [*sampled, teacher]:
                net.set_genotype(genotype)
                logits.append(net(images))
            *logits, target = logits
            of_labels = [F.cross_entropy(each, labels) for each in logits]
            divergence = [
                (target.softmax(1) * (target.log_softmax(1) - z.log_softmax(1))).sum(1).mean() for z in logits
            ]
            expected = torch.stack(of_labels if loss == "labels" else divergence).mean()
    torch.testing.assert_close(step.loss, expected)


def test_ensembles_of_logits_and_probabilities():
    a, b = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(OutputEnsemble()(a, b), (a + b) / 2)
    mean = OutputEnsemble("probs")
    torch.testing.assert_close(mean(a, b).exp(), (a.softmax(1) + b.softmax(1)) / 2)
    with torch.no_grad():
        mean.share.fill_(math.log(3))
    torch.testing.assert_close(mean(a, b).exp(), (3 * a.softmax(1) + b.softmax(1)) / 4)
    assert not mean.plain and OutputEnsemble().plain
