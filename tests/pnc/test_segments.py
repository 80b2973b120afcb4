"""Segments of like colour: against scikit-image, and what is blanked by them."""

from __future__ import annotations

import pytest
import torch

from recombine import models as zoo
from recombine.pnc.local.neighbourhood import Neighbourhood, Purpose, blank, draw_vectors, fit_ridge, proximity
from recombine.pnc.local.segments import KnownSegments, quickshift, segment_colours, to_lab

ADDRESS = (0, 0, Purpose.FIT)
SKIMAGE = """
1111112222222000
1111112222222233
1111111222222233
1111111222222233
1111111222222233
1111111123333333
1111111112333333
1111111111333333
1114444111333333
1114444411335555
6114444411355555
6114444418555555
6714444448555559
671444448855559a
67114444885559aa
6711444488888aaa
"""
"""quickshift(waves(16), kernel_size=2, max_dist=6, ratio=0.2) of scikit-image 0.26, with any seed of its noise."""


def waves(side, seed=0):
    """An uint8 image [1, 3, side, side] of three smooth colours."""
    y, x = torch.meshgrid(*[torch.arange(side, dtype=torch.float64) / side] * 2, indexing="ij")
    red = (5 * x + seed).sin() + (7 * y * x + seed).cos()
    colours = torch.stack([red, (9 * x * y + 2 * seed).sin() * (4 * y).cos(), (6 * x - 3 * y + seed).cos()])
    least, most = colours.amin((1, 2), keepdim=True), colours.amax((1, 2), keepdim=True)
    return (255 * (colours - least) / (most - least)).round().to(torch.uint8)[None]


def as_partition(labels):
    """Which pixels are of one segment, whatever its number."""
    return labels.flatten()[:, None] == labels.flatten()


def test_segments_are_scikit_images():
    expected = torch.tensor([[int(letter, 16) for letter in row] for row in SKIMAGE.split()])
    found = quickshift(0.2 * to_lab(waves(16)), kernel=2.0, max_distance=6.0)[0]
    assert len(expected.unique()) == 11 and torch.equal(as_partition(found), as_partition(expected))


def test_colours_by_numbers_of_scikit_image():
    """Of (51, 128, 230) and (3, 8, 5)."""
    colours = torch.tensor([[51, 128, 230], [3, 8, 5]], dtype=torch.uint8).T[None, :, :, None]
    expected = torch.tensor([[53.8699, 12.0362, -58.3572], [1.8425, -1.7248, 0.6748]], dtype=torch.float64).T[
        None, :, :, None
    ]
    torch.testing.assert_close(to_lab(colours), expected, rtol=1e-4, atol=1e-3)


def test_the_largest_come_first_and_no_more_than_a_grid_has():
    images = torch.cat([waves(32, seed) for seed in (1, 2, 3)])
    images += torch.randint(0, 40, images.shape, generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    many, few = segment_colours(images, 4), segment_colours(images, 2)
    assert torch.equal(segment_colours(images[1:2], 4), many[1:2])
    for labels, most in ((many, 16), (few, 4)):
        for each in labels:
            sizes = each.flatten().bincount()
            assert 1 < len(sizes) <= most and (sizes > 0).all()
            assert (sizes[: most - 1].diff() <= 0).all(), "the last may be what is left over"
    assert segment_colours(torch.full((1, 3, 32, 32), 7, dtype=torch.uint8), 4).unique().tolist() == [0]


@pytest.mark.parametrize("fill", ["mean", "patch_mean", "zero_pixel"])
def test_segments_are_blanked_as_wholes_in_every_networks_view(fill):
    """A network of another size and crop blanks the same segments; its twin looks at each pixel by itself."""
    near = Neighbourhood(segment="quickshift", fill=fill)
    images, index = torch.cat([waves(32, 1), waves(32, 2)]), torch.tensor([5, 9])
    labels = near.find_segments(index, images)
    for size, crop in ((32, 1.0), (24, 0.75), (16, 1.0)):
        node = {
            "name": "cnn_small",
            "weights": None,
            "size": size,
            "crop_pct": crop,
            "mean": [0.3] * 3,
            "std": [0.2] * 3,
        }
        model = zoo.build(node, classes=2, seed=0)
        view = near.view(images, model.preprocess, labels)
        assert view.labels.shape == (2, size, size) and torch.equal(view.counts, labels.flatten(1).amax(1) + 1)
        vectors = near.draw(ADDRESS, index, 6, view)
        plain, blanked = draw_vectors(ADDRESS, index, 6, 16), near.blank(view, vectors).unflatten(0, (2, 6))
        for k, count in enumerate(view.counts.tolist()):
            assert torch.equal(vectors[k, :, :count], plain[k, :, :count]) and vectors[k, :, count:].all()
            for vector, image in zip(vectors[k], blanked[k], strict=True):
                expected = view.images[k].clone()
                for segment in (~vector).nonzero().flatten().tolist():
                    inside = view.labels[k] == segment
                    if inside.any():
                        means = expected[:, inside].mean(1, keepdim=True)
                        colours = {"mean": 0.0, "patch_mean": means, "zero_pixel": -0.3 / 0.2}
                        expected[:, inside] = colours[fill] * torch.ones_like(expected[:, inside])
                torch.testing.assert_close(image, expected, rtol=1e-5, atol=1e-5)


def test_black_patches_of_a_grid():
    images = torch.arange(16.0).view(1, 1, 4, 4).expand(1, 3, 4, 4)
    black = torch.tensor([-1.0, -2, -3]).view(1, 3, 1, 1)
    (filled,) = blank(images, torch.tensor([[[True, True, False, True]]]), "zero_pixel", black=black)
    expected = images[0].clone()
    expected[:, 2:, :2] = black[0]
    assert torch.equal(filled, expected)


def test_segments_that_an_image_lacks_change_neither_weights_nor_coefficients():
    """Of 5 segments among 9 numbers: as if there were 5."""
    near, labels = Neighbourhood(grid=3, segment="quickshift"), (torch.arange(64).view(1, 8, 8) % 5).to(torch.uint8)
    model = zoo.build({"name": "cnn_small", "weights": None, "size": 8}, classes=2, seed=0)
    view = near.view(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), model.preprocess, labels)
    vectors = near.draw(ADDRESS, torch.tensor([3]), 40, view)
    weights = near.weights(vectors, view.counts)
    torch.testing.assert_close(weights, proximity(vectors[..., :5], near.sigma))
    outputs = torch.randn(1, 40, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = fit_ridge(vectors, weights, outputs, 1.0)
    expected = fit_ridge(vectors[..., :5], weights, outputs, 1.0)
    torch.testing.assert_close(found[:, [0, 1, 2, 3, 4, 9]], expected)
    assert found[:, 5:9].abs().max() < 1e-9


def test_known_segments_are_looked_up(digits):
    loader = digits.loader("train", 64, train=False, indices=range(0, 300, 3))
    known = KnownSegments.find(loader, 4, torch.device("cpu"))
    batch = next(digits.loader("train", 7, train=False, indices=[9, 3, 297, 33, 6, 0, 150]).epoch(0))
    assert torch.equal(known(batch.index, None), segment_colours(batch.images, 4))
