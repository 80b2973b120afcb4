"""Draws, kernel, blanking and ridge against hand-worked values, slow twins, scikit-learn and properties."""

import math
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge

from recombine.core.counter_rng import bits
from recombine.core.errors import ConfigError
from recombine.pnc.local.neighbourhood import (
    KERNELS,
    OUTPUTS,
    Neighbourhood,
    Purpose,
    blank,
    draw_vectors,
    fit_ridge,
    predict_linear,
    proximity,
)
from recombine.pnc.settings import LimeSettings

ADDRESS = (0, 0, Purpose.FIT)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("patches", [4, 16, 81])
def test_a_draw_is_a_function_of_its_address(patches):
    """Batch, order, device and how many are drawn do not matter; the twin looks each bit up by itself."""
    index = torch.tensor([70_000, 3, 0, 12])
    drawn = draw_vectors((5, 2, Purpose.TRAIN), index, 6, patches)
    assert drawn.shape == (4, 6, patches) and drawn.dtype == torch.bool
    for sample, vectors in zip(index.tolist(), drawn, strict=True):
        assert vectors[0].all()
        for number in range(1, 6):
            expected = [
                bits(5, 2, sample * 2**32 + number, Purpose.TRAIN + j // 64) >> (j % 64) & 1 for j in range(patches)
            ]
            assert vectors[number].int().tolist() == expected
    assert torch.equal(draw_vectors((5, 2, Purpose.TRAIN), index[[2, 0]], 3, patches), drawn[[2, 0], :3])


def test_draws_of_other_addresses_differ_and_are_even():
    index = torch.arange(500)
    first, *others = (
        draw_vectors(address, index, 9, 16)[:, 1:].double()
        for address in [ADDRESS, (1, 0, Purpose.FIT), (0, 1, Purpose.FIT), (0, 0, Purpose.TRAIN)]
    )
    # 500 x 8 fair coins for each patch: 4.5 standard deviations
    assert (first.mean((0, 1)) - 0.5).abs().max() < 4.5 * 0.5 / math.sqrt(4000)
    pairs = torch.corrcoef(first.flatten(0, 1).T)
    assert (pairs - torch.eye(16)).abs().max() < 4.5 / math.sqrt(4000)
    for other in others:
        assert abs((first == other).double().mean() - 0.5) < 4.5 * 0.5 / math.sqrt(64_000)


def test_proximity_by_hand():
    """4 of 16 present: d = 1 - 0.5, exp(-0.25 / 0.125) = e^-2; 9 of 16: d = 0.25, exp(-0.0625 / 0.125) = e^-0.5."""
    vectors = torch.arange(16) < torch.tensor([16, 9, 4, 0])[:, None]
    expected = torch.tensor([1, math.exp(-0.5), math.exp(-2), 0])
    torch.testing.assert_close(proximity(vectors, 0.25), expected, atol=1e-7, rtol=1e-6)
    assert proximity(vectors, 0.25)[0] == 1


def test_proximity_falls_with_every_blanked_patch():
    vectors = torch.arange(64) < torch.arange(64, -1, -1)[:, None]
    for grid in (2, 4, 8):
        weights = proximity(vectors[64 - grid**2 :, : grid**2], 0.25)
        assert weights[0] == 1 and weights[-1] == 0 and (weights.diff() < 0).all()
    assert torch.equal(Neighbourhood(kernel="uniform").weights(vectors), torch.ones(65))
    assert torch.equal(Neighbourhood(sigma=0.5).weights(vectors), proximity(vectors, 0.5))


def slow_blank(images, vectors, grid):
    """Pixel by pixel: which patch row and column a pixel lies in, and whether that patch is present."""
    made = []
    for image, its_vectors in zip(images, vectors, strict=True):
        for vector in its_vectors:
            copy = image.clone()
            for y in range(image.shape[1]):
                for x in range(image.shape[2]):
                    patch = grid * (y * grid // image.shape[1]) + x * grid // image.shape[2]
                    if not vector[patch]:
                        copy[:, y, x] = 0
            made.append(copy)
    return torch.stack(made)


@settings(max_examples=25, deadline=None)
@given(height=st.integers(5, 13), width=st.integers(5, 13), grid=st.integers(2, 5), samples=st.integers(1, 2))
def test_blanking_equals_its_slow_twin(height, width, grid, samples):
    images = random(samples, 3, height, width).float()
    vectors = draw_vectors(ADDRESS, torch.arange(samples), 3, grid**2)
    blanked = blank(images, vectors)
    assert torch.equal(blanked, slow_blank(images, vectors, grid))
    assert torch.equal(blanked[::3], images)


def test_a_patch_is_filled_with_its_own_mean_colour():
    image = torch.arange(16.0).view(1, 1, 4, 4) * torch.tensor([1.0, 2, 3]).view(1, 3, 1, 1)
    (filled,) = blank(image, torch.tensor([[[True, False, True, True]]]), "patch_mean")
    expected = image[0].clone()
    expected[:, :2, 2:] = torch.tensor([4.5, 9, 13.5])[:, None, None]  # of 2, 3, 6 and 7
    assert torch.equal(filled, expected)


@pytest.mark.parametrize("side, grid, sizes", [(28, 4, [7] * 4), (32, 8, [4] * 8), (14, 4, [4, 3, 4, 3])])
def test_patches_are_as_even_as_possible(side, grid, sizes):
    """Shown one by one, the patches of a white image cover it, each with its own rows and columns."""
    shown = blank(torch.ones(1, 3, side, side), torch.eye(grid**2).bool()[None])
    assert torch.equal(shown.sum(0), torch.ones(3, side, side))
    assert shown[:, 0].sum((1, 2)).tolist() == [height * width for height in sizes for width in sizes]


def test_a_grid_finer_than_the_pixels():
    with pytest.raises(ConfigError, match=r"lime\.grid=4: images of 3 x 3 px allow lime\.grid=3"):
        blank(torch.ones(1, 3, 3, 3), torch.ones(1, 1, 16).bool())


@pytest.mark.parametrize("alpha", [1e-3, 1.0, 30.0])
def test_ridge_is_scikit_learns(alpha):
    vectors = draw_vectors(ADDRESS, torch.arange(5), 60, 16)
    weights, outputs = proximity(vectors, 0.25), 3 * random(5, 60, 4)
    theta = fit_ridge(vectors, weights, outputs, alpha)
    assert theta.shape == (5, 17, 4) and theta.dtype == torch.float64
    for k in range(5):
        twin = Ridge(alpha, solver="cholesky").fit(vectors[k].double().numpy(), outputs[k].numpy(), weights[k].numpy())
        torch.testing.assert_close(theta[k, :-1].T, torch.from_numpy(twin.coef_), atol=1e-9, rtol=0)
        torch.testing.assert_close(theta[k, -1], torch.from_numpy(twin.intercept_), atol=1e-9, rtol=0)
        predicted = torch.from_numpy(twin.predict(vectors[k].double().numpy()))
        torch.testing.assert_close(predict_linear(theta, vectors)[k], predicted, atol=1e-9, rtol=0)


def test_a_linear_function_is_recovered():
    vectors, truth = draw_vectors(ADDRESS, torch.arange(6), 40, 16), random(6, 17, 3)
    theta = fit_ridge(vectors, proximity(vectors, 0.25), predict_linear(truth, vectors), 1e-10)
    torch.testing.assert_close(theta, truth, atol=1e-6, rtol=0)


def test_local_values_keep_their_precision_under_autocast():
    theta, vectors = random(2, 17, 3).float(), draw_vectors(ADDRESS, torch.arange(2), 8, 16)
    with torch.autocast("cpu", torch.bfloat16):
        inside = predict_linear(theta, vectors)
    assert inside.dtype == torch.float32 and torch.equal(inside, predict_linear(theta, vectors))


def test_settings_name_all_problems_with_their_remedy():
    node = {"grid": 8, "num_train": 0, "kernel": ["lime"], "sigma": 0, "alpha": True, "outptu": "prob"}
    with pytest.raises(ConfigError) as caught:
        Neighbourhood.of(node, "lime")
    assert len(caught.value.problems) == len(node)  # the default num_fit is too small for this grid
    message = str(caught.value)
    for part in ("did you mean 'output'", "such as lime.num_train=2", "lime.sigma=0: a number above 0", "lime.alpha=1"):
        assert part in message
    with pytest.raises(ConfigError, match=r"lime\.num_fit=129: .*; try lime\.num_fit=130"):
        Neighbourhood.of({"grid": 8, "num_fit": 129}, "lime")
    assert Neighbourhood.of({"grid": 8, "num_fit": 130}).patches == 64
    with pytest.raises(ConfigError, match=r"lime\.grid=2\.5: a whole number of at least 2"):
        Neighbourhood.of({"grid": 2.5}, "lime")
    assert Neighbourhood.of(LimeSettings(), "lime") == Neighbourhood.of({})
    assert get_args(LimeSettings.model_fields["kernel"].annotation) == tuple(KERNELS)
    assert get_args(LimeSettings.model_fields["output"].annotation) == tuple(OUTPUTS)


def test_outputs_are_logits_or_probabilities_of_all_classes():
    logits, columns = random(2, 5, 4).float(), torch.tensor([3, 1])
    assert torch.equal(Neighbourhood().outputs(logits, columns), logits[..., [3, 1]])
    assert torch.equal(Neighbourhood(output="prob").outputs(logits, columns), logits.softmax(-1)[..., [3, 1]])
    assert torch.equal(Neighbourhood().outputs(logits), logits)
