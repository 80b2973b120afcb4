"""Zero-shot domain adaptation: each loss by hand, and which part learns from which term."""

from __future__ import annotations

import copy

import pytest
import torch
from hydra import compose
from torch.nn import functional as F

from recombine.cli.search_path import initialize_entry
from recombine.core.results import read_rows
from recombine.core.types import Batch
from recombine.models.graph import traced
from recombine.patch import recipe
from recombine.patch.delta import Delta
from recombine.patch.domain.adversary import Adda, UniformPrior
from recombine.patch.patched import TaskNetwork
from recombine.run.launch import launch


@pytest.fixture
def network(network):
    model = network("resnet8", size=16)
    return TaskNetwork(model.requires_grad_(True), Delta(traced(model), 4), frozen=False)


@pytest.fixture
def batch(images):
    return Batch(images, torch.tensor([0, 1, 2, 3, 0, 1]), torch.arange(6))


def gradients(module):
    return [None if value.grad is None else value.grad.clone() for value in module.parameters()]


def same(found, expected):
    pairs = [(a, b) for a, b in zip(found, expected, strict=True) if a is not None or b is not None]
    assert pairs and all(torch.allclose(a, b, rtol=1e-3, atol=1e-6) for a, b in pairs)


def test_features_are_what_enters_the_classifier(network, images):
    features, logits = network.eval().features_and_logits(images)
    torch.testing.assert_close(network.patch.head(features), logits)
    torch.testing.assert_close(network(images), logits)


def test_the_uniform_prior_by_hand(network, batch):
    """Each part gets the gradients of its own loss alone: D of L_D, the encoder of CE + w E[-log D(z)]."""
    method = UniformPrior(network, weight=0.4)
    method.train()
    torch.manual_seed(5)
    method(batch).loss.backward()
    encoder, discriminator = gradients(network), gradients(method.discriminator)
    method.zero_grad()
    torch.manual_seed(5)
    features, logits = network.features_and_logits(batch.images)
    uniform = torch.rand_like(features) * 2 - 1
    judged = torch.sigmoid(method.discriminator(features))
    (F.cross_entropy(logits, batch.labels) - 0.4 * judged.log().mean()).backward()
    same(encoder, gradients(network))
    method.zero_grad()
    real, fake = (torch.sigmoid(method.discriminator(value)) for value in (uniform, features.detach()))
    (-real.log().mean() - (1 - fake).log().mean()).backward()
    same(discriminator, gradients(method.discriminator))


def test_adda_by_hand(network, batch):
    method = Adda(network)
    method.train()
    before = copy.deepcopy(network.patch.head.state_dict())
    method(batch).loss.backward()
    encoder, discriminator = gradients(network), gradients(method.discriminator)
    assert all(value.grad is None for value in [*method.source.parameters(), *network.patch.head.parameters()])
    method.zero_grad()
    with torch.no_grad():
        source = method.source.features_and_logits(batch.images[:3])[0]
    target = network.features_and_logits(batch.images[3:])[0]
    F.cross_entropy(method.discriminator(target), torch.ones(3).long()).backward()
    same(encoder, gradients(network))
    method.zero_grad()
    logits = method.discriminator(torch.cat([source, target.detach()]))
    F.cross_entropy(logits, torch.tensor([1, 1, 1, 0, 0, 0])).backward()
    same(discriminator, gradients(method.discriminator))
    assert not any("source" in key or "patch.head" in key for key in method.trained_state())
    assert all(torch.equal(value, before[key]) for key, value in network.patch.head.state_dict().items())


def test_adda_gives_the_row_before_and_after_it(tmp_path):
    words = ["model=resnet8", "model.size=8", "dataset=digits", "loader=torch", "loader.workers=0", "logger=none"]
    words += ["protocol=zero_shot", "method=delta_all", "engine.max_steps=2", "tasks=[{name: other, dataset: digits}]"]
    words += [f"{root}_root={tmp_path / root}" for root in ("data", "cache", "output", "weights")]
    words += ["regularizer=uniform_prior", "regularizer.weight=0.4", "adaptation=adda", "batch_size=32", "device=cpu"]
    with initialize_entry("patch"):
        launch(recipe, compose("patch/patch", words))
    before, after = sorted(read_rows(tmp_path / "output"), key=lambda row: row.metrics["steps"])
    assert (before.cell["adaptation"], after.cell["adaptation"]) == ("none", "adda")
    assert (before.metrics["steps"], after.metrics["steps"]) == (2, 4)
    assert after.cell["regularizer"] == "uniform_prior_weight_0.4" and after.cell["dataset"] == "digits"
    assert {"accuracy_source", "accuracy_other", "accuracy_patched"} <= after.metrics.keys()
