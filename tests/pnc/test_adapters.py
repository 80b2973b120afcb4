"""Adapters of every kind: shapes, where they start, and least squares against numpy."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from recombine.core.errors import ConfigError
from recombine.models.cuts import Cut
from recombine.pnc.clone.adapters import LeastSquares, make_adapter
from recombine.pnc.clone.positions import Position
from recombine.pnc.method_settings import CloningSettings

SHAPES = [((6, 4, 4), (8, 4, 4)), ((8, 8, 8), (4, 3, 3)), ((5,), (7,)), ((5,), (7, 3, 3)), ((5, 3, 3), (7,))]
LEARNED = [kind for kind in get_args(CloningSettings.model_fields["adapter"].annotation) if kind != "none"]


def adapter_of(kind, target=(6, 4, 4), source=(8, 4, 4)):
    """An adapter between features of these shapes, evaluated."""
    torch.manual_seed(0)
    cuts = (Cut("cut", None, shape, 1.0) for shape in (target, source))
    return make_adapter(Position(2, *cuts, 2), kind).eval()


def pairs(*shapes, count=3, batch=9):
    """Batches of features of both sides that have something to do with each other."""
    generator = torch.Generator().manual_seed(1)
    (inputs, *size), (outputs, *wanted) = shapes
    mixing = torch.randn(outputs, inputs, generator=generator)
    for _ in range(count):
        value = torch.randn(batch, inputs, *size, generator=generator).relu()
        value[:, 0] = 0  # a channel that is never active
        near = value if size == wanted else F.interpolate(value, wanted, mode="bilinear")
        noise = torch.randn(batch, outputs, *wanted, generator=generator)
        yield value, torch.einsum("oi,bi...->bo...", mixing, near) + 0.5 * noise + 2


@pytest.mark.parametrize("kind", LEARNED)
@pytest.mark.parametrize(("target", "source"), SHAPES)
def test_every_kind_goes_between_any_shapes(kind, target, source):
    assert adapter_of(kind, target, source)(torch.randn(3, *target)).shape == (3, *source)


def test_equal_widths_start_near_the_identity():
    for kind, shape in [
        ("conv1x1", (6, 4, 4)),
        ("conv1x1_bn", (6, 4, 4)),
        ("conv3x3_bn", (6, 4, 4)),
        ("conv1x1", (6,)),
    ]:
        value = torch.randn(2, *shape)
        assert (adapter_of(kind, shape, shape)(value) - value).abs().max() < 0.03


def test_a_bottleneck_has_fewest_weights():
    sizes = {kind: sum(p.numel() for p in adapter_of(kind, (64, 4, 4), (64, 4, 4)).parameters()) for kind in LEARNED}
    assert min(sizes, key=sizes.get) == "bottleneck" and sizes["bottleneck"] == 2 * 64 * 16 + 2 * 64


def test_none_needs_one_shape():
    assert adapter_of("none", (6, 4, 4), (6, 4, 4))(torch.ones(1)) == 1
    with pytest.raises(ConfigError, match="needs features of one shape, but at R2 they"):
        adapter_of("none")


def rows_of(kind, value, size):
    """The regressors of every pixel, by numpy."""
    value = F.interpolate(value, size, mode="bilinear") if size and list(value.shape[2:]) != list(size) else value
    side = 3 if "3x3" in kind else 1
    if value.ndim == 2:
        return value.double().numpy()
    padded = np.pad(value.double().numpy(), [(0, 0), (0, 0), (side // 2,) * 2, (side // 2,) * 2])
    height, width = value.shape[2:]
    shifted = [padded[:, :, y : y + height, x : x + width] for y in range(side) for x in range(side)]
    return np.moveaxis(np.concatenate(shifted, 1), 1, -1).reshape(-1, value.shape[1] * side**2)


@pytest.mark.parametrize("kind", LEARNED)
@pytest.mark.parametrize(("target", "source"), [((6, 4, 4), (8, 4, 4)), ((8, 6, 6), (4, 4, 4)), ((5,), (7,))])
def test_a_start_by_least_squares_is_the_best_map(kind, target, source):
    """As near to the source as numpy's lstsq; of a bottleneck: as near as the best map of its rank."""
    adapter = adapter_of(kind, target, source)
    fit = LeastSquares(adapter)
    batches = list(pairs(target, source))
    for value, goal in batches:
        fit.add(value, goal)
    fit.solve()
    rows = np.concatenate([rows_of(kind, value, source[1:]) for value, _ in batches])
    goals = np.concatenate([np.moveaxis(goal.double().numpy(), 1, -1).reshape(-1, source[0]) for _, goal in batches])
    if kind != "conv1x1" or len(source) == 1:
        rows = np.concatenate([rows, np.ones((len(rows), 1))], 1)
    best = rows @ np.linalg.lstsq(rows, goals, rcond=None)[0]
    if kind == "bottleneck" and len(source) == 3:
        centre = best.mean(0)
        left, values, right = np.linalg.svd(best - centre, full_matrices=False)
        rank = min(target[0], source[0]) // 4
        best = centre + left[:, :rank] * values[:rank] @ right[:rank]
    said = [adapter(value).detach().double().numpy() for value, _ in batches]
    found = np.concatenate([np.moveaxis(each, 1, -1).reshape(-1, source[0]) for each in said])
    np.testing.assert_allclose(found, best, atol=2e-4)
    assert all(torch.isfinite(value).all() for value in adapter.state_dict().values())
