"""Adapters, BatchNorm adaptation, PAINT and what sums accuracies up."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from recombine.core.errors import ConfigError
from recombine.core.types import Batch
from recombine.models.graph import traced
from recombine.patch.adapters import NormAdaptation, ResidualAdapters, dua_momenta
from recombine.patch.metrics import harmonic_mean, mean, pooled
from recombine.patch.paint.interpolation import backbone, choose_alpha, interpolate, recalibrate, with_new_head
from recombine.patch.patched import TaskNetwork
from recombine.patch.settings import Paint


@pytest.mark.parametrize("position", ["parallel", "series"])
def test_adapters_of_zero_leave_the_network_as_it_is(resnet20, images, position):
    patch = ResidualAdapters(traced(resnet20), 10, position=position)
    assert len(patch.adapters) == 19  # every 3x3 convolution of a ResNet-20
    patch.head = resnet20.net.linear
    patched = TaskNetwork(resnet20, patch).eval()
    with torch.no_grad():
        assert not torch.allclose(patched(images), resnet20(images))
        for adapter in patch.adapters:
            (adapter if position == "parallel" else adapter[1]).weight.zero_()
        torch.testing.assert_close(patched(images), resnet20(images))


def test_a_parallel_adapter_equals_a_changed_kernel(resnet20, images):
    """A 1x1 kernel beside a 3x3 one is the 3x3 one with another centre."""
    patch = ResidualAdapters(traced(resnet20), 10, position="parallel")
    patch.head = resnet20.net.linear
    with torch.no_grad():
        expected = TaskNetwork(resnet20, patch).eval()(images)
        convolutions = [m for m in resnet20.net.modules() if isinstance(m, nn.Conv2d)]
        for conv, adapter in zip(convolutions, patch.adapters, strict=True):
            conv.weight[:, :, 1, 1] += adapter.weight[:, :, 0, 0]
        torch.testing.assert_close(resnet20(images), expected, rtol=1e-3, atol=1e-4)


def test_task_norms_start_as_the_pretrained_ones_and_leave_them_alone(resnet20, images):
    patch = NormAdaptation(traced(resnet20), 10)
    patch.head = resnet20.net.linear
    patched = TaskNetwork(resnet20, patch).eval()
    assert patch.parameters_without_head() == sum(
        p.numel() for m in resnet20.net.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()
    )
    with torch.no_grad():
        assert torch.equal(patched(images), resnet20(images))
        before = resnet20.net.bn1.running_mean.clone()
        patched.patch.train()
        patched(images)
    assert torch.equal(before, resnet20.net.bn1.running_mean)
    assert not torch.equal(before, patch.norms[0].running_mean)


def test_dua_moves_only_statistics_and_by_its_momentum(resnet20, images):
    assert dua_momenta(2) == pytest.approx([0.099, 0.09336])
    patch = NormAdaptation(traced(resnet20), 10, mode="dua")
    patched = TaskNetwork(resnet20, patch)
    start = patch.norms[0].running_mean.clone()
    seen = []
    patch.norms[0].register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].mean((0, 2, 3))))
    patch.prepare(patched, lambda count: images[: min(2, count)], seed=0)
    expected = start
    for mean_, momentum in zip(seen, dua_momenta(2), strict=True):
        expected = (1 - momentum) * expected + momentum * mean_
    torch.testing.assert_close(patch.norms[0].running_mean, expected)
    after = patch.norms[0].running_mean.clone()
    patched.train()
    patched(images)
    assert torch.equal(after, patch.norms[0].running_mean) and patch.parameters_without_head() == 0


def test_interpolation_is_exact_at_its_ends_and_linear_between(resnet20):
    start = backbone(resnet20)
    tuned = with_new_head(resnet20, 3)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.add_(torch.randn_like(parameter))
    tuned.net.bn1.num_batches_tracked += 5
    end = backbone(tuned)
    assert start.keys() == end.keys() and not any(key.startswith("linear") for key in start)
    for alpha, exact in ((0, start), (1, end)):
        assert all(torch.equal(value, exact[key]) for key, value in interpolate(start, end, alpha).items())
    middle = interpolate(start, end, 0.25)
    torch.testing.assert_close(middle["conv1.weight"], 0.75 * start["conv1.weight"] + 0.25 * end["conv1.weight"])
    assert middle["bn1.num_batches_tracked"] == 5
    assert torch.equal(start["conv1.weight"], resnet20.net.conv1.weight)


def test_paint_chooses_by_the_score_it_is_told():
    accuracies = {0.0: [90.0, 1.0], 0.5: [60.0, 50.0], 1.0: [22.0, 98.0]}
    assert choose_alpha(Paint(alphas=list(accuracies)), accuracies.get)[0] == 0.5
    assert choose_alpha(Paint(alphas=list(accuracies), select="mean"), accuracies.get)[0] == 1.0
    assert choose_alpha(Paint(select="fixed", alpha=0.3), accuracies.get) == (0.3, {})
    assert choose_alpha(Paint(alphas=[0.0, 0.1]), lambda alpha: [50.0, 50.0])[0] == 0.0
    with pytest.raises(ConfigError, match=r"method.select=best"):
        Paint.of({"select": "best"}, "method")


def test_paint_counts_tasks_learnt_together_as_one_set():
    """The smaller task would decide alone if each task counted."""
    accuracies = {0.0: [80.0, 40.0, 40.0], 1.0: [80.0, 60.0, 10.0]}
    paint = Paint(alphas=list(accuracies))
    assert choose_alpha(paint, accuracies.get)[0] == 0.0
    assert choose_alpha(paint, accuracies.get, [90, 10])[0] == 1.0
    assert pooled([60.0, 10.0], [90, 10]) == pytest.approx(55.0)


def test_harmonic_mean_and_mean_of_the_paper():
    assert harmonic_mean([68.87, 81.10]) == pytest.approx(74.49, abs=0.005)
    assert mean([68.87, 35.16, 83.90, 94.14]) == pytest.approx(70.52, abs=0.005)
    assert harmonic_mean([0.0, 50.0]) == 0.0


def test_recalibrated_statistics_are_plain_averages_over_batches():
    """Of the batches' means and unbiased variances, each batch counted alike, whatever was there before."""
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(3)
    norm.running_mean.fill_(50.0), norm.running_var.fill_(70.0), norm.num_batches_tracked.fill_(5)
    batches = [torch.randn(8, 3, 4, 4) * (k + 1) + k for k in range(3)]

    class Images:
        def epoch(self, epoch):
            yield from (Batch(images, torch.zeros(8), torch.arange(8)) for images in batches)

    recalibrate(norm, Images())
    values = [batch.movedim(1, 0).flatten(1) for batch in batches]
    torch.testing.assert_close(norm.running_mean, torch.stack([each.mean(1) for each in values]).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack([each.var(1) for each in values]).mean(0))
    assert norm.momentum == 0.1 and not norm.training
