"""Plots of skip weights: every value is in them, learned ones outside 0..1 and those of other processes too."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from recombine.models.graph import traced
from recombine.patch import skip_weights
from recombine.patch.delta import Delta
from recombine.patch.patched import TaskNetwork
from recombine.patch.plots import plot_skip_weights
from recombine.patch.skip_weights import record_skip_weights, save_skip_weights


@pytest.fixture
def run(tmp_path):
    return SimpleNamespace(main=True, dir=tmp_path, tracker=SimpleNamespace(image=print, table=print))


@pytest.mark.parametrize("weights", ["delta", "learned", "random"])
def test_recorded_weights_become_a_plot_and_arrays(resnet20, images, run, weights):
    patched = TaskNetwork(resnet20, Delta(traced(resnet20), 4, modules=2, weights=weights)).eval()
    with torch.no_grad(), record_skip_weights(patched) as recorded:
        patched(images[:4])
        patched(images[4:])
    means = save_skip_weights(run, patched, "letters", recorded)
    assert list(means) == ["alpha_layer2", "alpha_layer3"] and len(means["alpha_layer3"]) == 6
    arrays = np.load(run.dir / "skip_weights_letters.npz")
    assert arrays["0"].shape == (6, 6) and arrays["1"].mean(0) == pytest.approx(means["alpha_layer3"])
    assert (run.dir / "plots" / "skip_weights_letters.png").exists()


def test_weights_of_all_processes_count(resnet20, images, run, monkeypatch):
    patched = TaskNetwork(resnet20, Delta(traced(resnet20), 4, modules=1, weights="ones")).eval()
    monkeypatch.setattr(skip_weights, "gather", lambda here: [here, 3 * here, here[:0]])
    with torch.no_grad(), record_skip_weights(patched) as recorded:
        patched(images)
    assert save_skip_weights(run, patched, "letters", recorded)["alpha_layer3"] == [2.0] * 6


def test_scales_reach_as_far_as_the_weights():
    figure = plot_skip_weights(
        ["one"], [[(0, 1), (0, 2), (1, 2)]], [torch.tensor([[-1.0, 0.5, 3.0], [-1.0, 0.5, 5.0]])]
    )
    mean, std, histogram = figure.axes[:3]
    assert mean.images[0].get_clim() == (-1.0, 4.0) and std.images[0].get_clim() == (0.0, 1.0)
    assert sum(bar.get_height() for bar in histogram.patches) == 6
    narrow = plot_skip_weights(["one"], [[(0, 1)]], [torch.tensor([[0.4], [0.6]])]).axes
    assert narrow[0].images[0].get_clim() == (0.0, 1.0) and narrow[1].images[0].get_clim() == (0.0, 0.5)
