"""Local models of real small networks on the digits: what is fitted, how it is looked up, loss and similarity."""

import pytest
import torch

from recombine.core.errors import ConfigError
from recombine.pnc.local.neighbourhood import (
    Neighbourhood,
    Purpose,
    View,
    blank,
    draw_vectors,
    fit_ridge,
    predict_linear,
)
from recombine.pnc.local.similarity import fit_coefficients, similarity
from recombine.pnc.local.surrogates import LimeModels, fit_linear_models, localization_loss

SMALL = Neighbourhood(grid=2, num_fit=12)


@pytest.fixture(scope="module")
def source(build):
    """A random network."""
    return build(0)


@pytest.fixture(scope="module")
def some(digits):
    """Positions of 23 training images, not in order and not from 0."""
    return digits.indices("train")[5:600:26][::-1].copy()


@pytest.fixture(scope="module")
def surrogates(digits, source, some):
    """Of two classes around those images."""
    loader = digits.loader("train", 10, train=False, indices=some)
    return LimeModels.fit(source, loader, [7, 2], SMALL, seed=3)


def images_of(digits, indices):
    return next(digits.loader("train", len(indices), train=False, indices=indices).epoch(0))


def test_every_sample_has_the_model_fitted_to_it_alone(digits, source, some, surrogates):
    """In any order, and not changed by the batch it was fitted in."""
    assert surrogates.theta.shape == (23, 5, 2) and surrogates.theta.dtype == torch.float32
    assert surrogates.index.tolist() == sorted(some)
    looked_up = surrogates(torch.from_numpy(some[:3]))
    for position, theta in zip(some[:3], looked_up, strict=True):
        batch = images_of(digits, [position])
        vectors = draw_vectors((3, 0, Purpose.FIT), batch.index, 12, 4)
        with torch.no_grad():
            outputs = source.net(blank(source.preprocess(batch.images), vectors))[None, :, [7, 2]]
        alone = fit_ridge(vectors, SMALL.weights(vectors), outputs, SMALL.alpha)[0]
        torch.testing.assert_close(theta.double(), alone, atol=1e-5, rtol=1e-5)


def test_the_source_stays_as_it_was(digits, build):
    source = build(1).train()
    before = {key: value.clone() for key, value in source.state_dict().items()}
    loader = digits.loader("train", 4, train=False, indices=[0, 1, 2, 3])
    fitted = LimeModels.fit(source, loader, [0], SMALL, seed=0)
    assert source.training and source.net.bn1.training and not fitted.theta.requires_grad
    assert all(torch.equal(value, before[key]) for key, value in source.state_dict().items())


def test_an_unknown_sample_is_not_a_number(surrogates, some):
    """Before, between and after the known ones."""
    unknown = torch.tensor([0, int(some.min()) + 1, int(some.max()) + 1])
    assert surrogates(unknown).isnan().all()
    assert not surrogates(surrogates.index).isnan().any()


@pytest.mark.parametrize("chunk", [1, 5, 12, 30])
def test_chunks_bound_the_images_and_change_nothing(digits, source, some, chunk):
    batch = images_of(digits, some[:5])
    images, vectors = View(source.preprocess(batch.images)), draw_vectors((0, 0, Purpose.FIT), batch.index, 12, 4)
    sizes = []

    def watched(blanked):
        sizes.append(len(blanked))
        return source.net(blanked)

    theta = fit_linear_models(watched, images, vectors, SMALL, chunk=chunk)
    torch.testing.assert_close(theta, fit_linear_models(source.net, images, vectors, SMALL), atol=1e-5, rtol=1e-5)
    assert max(sizes) <= chunk and sum(sizes) == 60


def test_a_network_that_sees_one_patch_has_its_weight_there(digits, source):
    """Patch 6 of 4 x 4 lies in the middle, where digits have ink."""
    batch = images_of(digits, range(8))

    def net(images):
        return torch.stack([images[:, :, 4:8, 8:12].mean((1, 2, 3)), 0 * images[:, 0, 0, 0] + 2], 1)

    images = source.preprocess(batch.images)
    theta = fit_coefficients(net, View(images), batch.index, Neighbourhood(alpha=1e-8), 0, count=64)
    expected = torch.zeros(8, 17, 2, dtype=torch.float64)
    expected[:, 6, 0] = images[:, :, 4:8, 8:12].mean((1, 2, 3))
    expected[:, 16, 1] = 2
    torch.testing.assert_close(theta, expected, atol=1e-5, rtol=0)
    shrunk = fit_coefficients(net, View(images), batch.index, Neighbourhood(), 0, count=64)[:, :-1, 0].abs()
    inked = images[:, :, 4:8, 8:12].mean((1, 2, 3)).abs() > 0.1
    assert inked.sum() >= 4 and (shrunk[inked].argmax(1) == 6).all()


def test_the_loss_is_a_weighted_mean():
    generator = torch.Generator().manual_seed(0)
    outputs, theta = (torch.randn(*shape, generator=generator) for shape in [(3, 6, 2), (3, 5, 2)])
    vectors = draw_vectors((0, 0, Purpose.TRAIN), torch.arange(3), 6, 4)
    weights, total = SMALL.weights(vectors), 0.0
    for i in range(3):
        for k in range(6):
            for o in range(2):
                value = theta[i, 4, o] + sum(theta[i, j, o] for j in range(4) if vectors[i, k, j])
                total += weights[i, k] * (outputs[i, k, o] - value) ** 2
    torch.testing.assert_close(localization_loss(outputs, predict_linear(theta, vectors), weights), total / 18)
    assert localization_loss(predict_linear(theta, vectors), predict_linear(theta, vectors), weights) == 0


def test_training_on_the_loss_reaches_the_network_but_not_the_models(digits, source, surrogates, some):
    batch = images_of(digits, some[:4])
    vectors = draw_vectors((0, 0, Purpose.TRAIN), batch.index, 3, 4)
    logits = source.net(blank(source.preprocess(batch.images), vectors)).unflatten(0, (4, 3))
    outputs = SMALL.outputs(logits, torch.tensor([7, 2]))
    goals = predict_linear(surrogates(batch.index), vectors)
    loss = localization_loss(outputs, goals, SMALL.weights(vectors))
    (gradient,) = torch.autograd.grad(loss, source.net.conv1.weight)
    assert loss > 0 and gradient.abs().sum() > 0


def test_similarity_of_a_network_with_itself_and_with_others(digits, build):
    batch = images_of(digits, range(0, 80, 10))
    models = [build(seed) for seed in range(6)]
    around = Neighbourhood()
    thetas = [
        fit_coefficients(m.net, View(m.preprocess(batch.images)), batch.index, around, 0, count=60) for m in models
    ]
    for theta in thetas:
        assert similarity(theta, theta) == pytest.approx(1, abs=1e-12)
        assert similarity(theta, -2 * theta) == pytest.approx(-1, abs=1e-12)
    pairs = torch.stack([similarity(a, b) for i, a in enumerate(thetas) for b in thetas[:i]])
    assert pairs.abs().max() < 0.7 and pairs.mean().abs() < 0.2
    shifted = thetas[0].clone()
    shifted[:, -1] += 5
    assert similarity(shifted, thetas[0]) == pytest.approx(1, abs=1e-12)


def test_similarity_refuses_what_cannot_be_compared(digits, source):
    with pytest.raises(ValueError, match="not of the same models"):
        similarity(torch.ones(2, 5, 3), torch.ones(2, 5, 2))
    batch = images_of(digits, [0])
    with pytest.raises(ConfigError, match=r"similarity\.vectors=9"):
        fit_coefficients(source.net, View(source.preprocess(batch.images)), batch.index, SMALL, 0, count=9)
