"""What a clone is compared with, against formulas and sums written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap
from torch.distributions import Categorical, kl_divergence
from torch.nn import functional as F

from recombine import models as zoo
from recombine.core.errors import ConfigError
from recombine.engine.evaluate import Predictions
from recombine.models.overview import flops, summary
from recombine.pnc.baseline_settings import EwcSettings, FineTuningSettings, FromScratchSettings
from recombine.pnc.baselines import (
    ElasticWeightConsolidation,
    LinearProbe,
    add_outputs,
    cross_entropy,
    estimate_fisher,
)
from recombine.pnc.gains import gain, pack, unpack
from recombine.pnc.metrics import count_bytes, source_metrics
from recombine.pnc.stages import distillation


def noise(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))


@given(st.floats(0.5, 8))
@settings(max_examples=10, deadline=None)
def test_the_distance_is_that_of_two_distributions(temperature):
    teacher, student = noise(5, 7), noise(5, 7).flip(0)
    expected = kl_divergence(Categorical(logits=teacher / temperature), Categorical(logits=student / temperature))
    torch.testing.assert_close(
        distillation(teacher, student, temperature), temperature**2 * expected, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(("new", "own", "first"), [(2, True, 0), (2, False, 5), (1, False, 0)])
def test_without_old_images_the_new_classes_are_a_task_of_their_own(new, own, first):
    """As in Learning without Forgetting; a single new class has none."""
    logits, labels = noise(9, 5 + new), 5 + torch.arange(9) % new
    chosen = logits[:, first:].double().log_softmax(1)
    expected = -chosen[torch.arange(9), labels - first].mean()
    assert float(cross_entropy(logits, labels, 5, own)) == pytest.approx(float(expected), rel=1e-5)


def test_the_interval_of_a_gain_is_scipys_bootstrap():
    random = np.random.default_rng(0)
    ours, others = ([random.random(count) < rate for count in (60, 25)] for rate in (0.8, 0.6))
    found = gain("gain", ours, others)
    differences = [a.astype(int) - b for a, b in zip(ours, others, strict=True)]
    statistic = lambda a, b, axis: 50 * (a.mean(axis=axis) + b.mean(axis=axis))  # noqa: E731
    expected = bootstrap(differences, statistic, n_resamples=9999, method="percentile", rng=0).confidence_interval
    assert found["gain"] == pytest.approx(float(statistic(*differences, 0)))
    assert (found["gain_low"], found["gain_high"]) == pytest.approx((expected.low, expected.high), abs=1.0)
    assert gain("gain", ours, ours) == {"gain": 0, "gain_low": 0, "gain_high": 0}
    assert all(np.array_equal(unpack(pack(hits)), hits) for hits in (*ours, *others, np.zeros(0, bool)))


def test_fisher_information_is_the_mean_square_gradient_of_each_sample(digits, build, monkeypatch):
    model = build(0)
    loader = digits.loader("train", 5, train=False, indices=range(12))
    monkeypatch.setattr("recombine.pnc.baselines.MAX_GRADIENTS", 3 * sum(p.numel() for p in model.net.parameters()))
    found = estimate_fisher(model, loader)
    expected = {name: torch.zeros_like(value) for name, value in model.net.named_parameters()}
    for batch in loader.epoch(0):
        for image, label in zip(batch.images, batch.labels, strict=True):
            model.net.zero_grad()
            F.cross_entropy(model(image[None]), label[None]).backward()
            for name, value in model.net.named_parameters():
                expected[name] += value.grad.square() / 12
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-7)


def test_the_fisher_information_of_a_linear_model_is_known(digits):
    """Of a softmax of W x: mean of ((p_k - 1[k = y]) x_d)^2."""
    net = torch.nn.Linear(6, 3, bias=False)
    model = torch.nn.Module()
    model.net = net
    model.preprocess = lambda images: images

    class Loader:
        def epoch(self, _):
            yield type("Batch", (), {"images": noise(8, 6), "labels": torch.arange(8) % 3})

    found = estimate_fisher(model, Loader())["weight"]
    x, y = noise(8, 6).double().numpy(), np.arange(8) % 3
    odds = np.exp(x @ net.weight.detach().double().numpy().T)
    error = odds / odds.sum(1, keepdims=True) - np.eye(3)[y]
    np.testing.assert_allclose(found.numpy(), (error[:, :, None] * x[:, None]).__pow__(2).mean(0), rtol=1e-4)


@pytest.mark.parametrize("name", ["lenet5", "torchvision:squeezenet1_1"])
def test_new_outputs_leave_the_old_ones_as_they_are(name):
    node = {"name": name, "weights": None, "size": 32, "mean": [0.4] * 3, "std": [0.3] * 3}
    target = zoo.build(node, classes=4, seed=0).eval()
    images = torch.randint(0, 256, (3, 3, 32, 32), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    tuned, probe = add_outputs(target, 2, seed=1).eval(), LinearProbe(target, target, "both", 2)
    assert tuned(images).shape == (3, 6) and torch.equal(probe(images)[:, :4], target(images))
    torch.testing.assert_close(tuned(images)[:, :4], target(images))
    torch.testing.assert_close(probe(images)[:, 4:], probe.fc(target.features(images).repeat(1, 2)))


def test_weights_are_held_by_half_their_stiffness_and_new_rows_are_free(build):
    target, net = build(0), build(0, classes=12)
    net.load_state_dict({k: v for k, v in target.state_dict().items() if "fc" not in k}, strict=False)
    with torch.no_grad():
        for old, new in zip(target.net.parameters(), net.net.parameters(), strict=True):
            new[: len(old)] = old + 0.5
    stiffness = {name: torch.full_like(value, 3.0) for name, value in target.net.named_parameters()}
    held = ElasticWeightConsolidation(net, target, stiffness, True).penalty()
    count = sum(value.numel() for value in target.net.parameters())
    torch.testing.assert_close(held, torch.tensor(0.5 * 3 * 0.25 * count))
    held.backward()
    assert net.net.fc.weight.grad[10:].abs().sum() == 0
    torch.testing.assert_close(net.net.fc.weight.grad[:10], torch.full((10, 16), 1.5))


def test_the_source_is_scored_among_all_classes_and_among_the_cloned():
    logits = torch.tensor([[3.0, 2, 1], [0, 2, 3], [1, 0, 3], [9, 1, 0]])
    predictions = Predictions(logits, torch.tensor([1, 1, 2, 0]), torch.arange(4))
    found = source_metrics(predictions, [1, 2])
    assert found["accuracy_source_cloned"] == pytest.approx(100 / 3)
    assert found["accuracy_source_cloned_own_space"] == pytest.approx(200 / 3)


def test_costs(build):
    model = build(0)
    state = model.net.state_dict().values()
    assert count_bytes(model.net) == sum(t.numpy().nbytes for t in state)
    image = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    convolutions = 2 * 9 * (3 * 8 * 16**2 + 8 * 8 * 8**2 + 8 * 16 * 4**2)
    assert flops(model, image) == 2 * summary(model)["macs"] == convolutions + 2 * 16 * 10


SGD = {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.01}
CONSTANT = {"_target_": "recombine.engine.optim.constant", "_partial_": True}


@pytest.mark.parametrize(
    ("settings", "given", "words"),
    [
        (EwcSettings, {"strengths": []}, r"method.strengths=\[\]: a list of numbers"),
        (EwcSettings, {"lr_factors": [0]}, r"method.lr_factors=\[0\]: a list of numbers above 0"),
        (EwcSettings, {"epochs": -1}, "method.epochs=-1: a number of at least 0"),
        (FineTuningSettings, {"temperature": "warm"}, "method.temperature=warm: a number above 0"),
        (FromScratchSettings, {"augment": "mirror"}, "method.augment=mirror: known are: crop, crop_resize, flip"),
        (FromScratchSettings, {"whole": 1}, "method.whole=1: true or false"),
    ],
)
def test_options_that_cannot_be(settings, given, words):
    needed = {"optimizer": SGD} | ({"schedule": CONSTANT} if settings is FromScratchSettings else {})
    settings.of(needed, "method")
    with pytest.raises(ConfigError, match=words):
        settings.of(needed | given, "method")
