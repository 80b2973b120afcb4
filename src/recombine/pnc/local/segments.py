"""What is blanked together in an image: patches of a grid, or segments of like colour (quickshift), as LIME does."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from recombine.core.distributed import gather_by_index
from recombine.core.types import Loader

__all__ = ["KnownSegments", "Segments", "quickshift", "segment_colours", "to_lab"]

Segments = Callable[[Tensor, Tensor], Tensor | None]
"""From positions in the split [B] and uint8 images [B, 3, h, w] to the segment of each pixel, uint8 [B, h, w]; or None
for the patches of a grid."""
MAX_PIXELS = 2**18
"""Pixels of the images that are divided at once."""
RATIO = 0.2
"""Weight of colour against place, LIME's."""
WHITE = (0.95047, 1.0, 1.08883)
"""XYZ of daylight D65, two degrees."""
XYZ = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))


def to_lab(images: Tensor) -> Tensor:
    """CIE Lab, float64 [B, 3, H, W], of uint8 sRGB images [B, 3, H, W] in daylight D65."""
    value = images.double() / 255
    linear = torch.where(value > 0.04045, ((value + 0.055) / 1.055) ** 2.4, value / 12.92)
    matrix = linear.new_tensor(XYZ) / linear.new_tensor(WHITE)[:, None]
    xyz = torch.einsum("ij,bjhw->bihw", matrix, linear)
    x, y, z = torch.where(xyz > 0.008856, xyz ** (1 / 3), 7.787 * xyz + 16 / 116).unbind(1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1)


def quickshift(values: Tensor, kernel: float, max_distance: float = 200.0) -> Tensor:
    """The mode that each pixel climbs to, int64 [B, H, W], by its number row by row; values float [B, C, H, W].

    Vedaldi & Soatto (ECCV 2008), as scikit-image does it: a pixel's density is the sum of Gaussians of width `kernel`
    of distances in colour and place, within 3 widths; each goes to the nearest pixel of higher density there, unless
    that is further than `max_distance`. Of equal densities the pixel that comes first is the higher.
    """
    height, width = values.shape[-2:]
    reach = math.ceil(3 * kernel)
    number = torch.arange(height * width, device=values.device).view(1, height, width).expand(len(values), -1, -1)
    density = torch.zeros_like(values[:, 0])
    for _, near, distance in _neighbours(values, reach, number):
        density += torch.where(near >= 0, torch.exp(-distance / (2 * kernel**2)), 0)
    best, parent = torch.full_like(density, torch.inf), number
    around = _pad(density, reach, -torch.inf)
    for (y, x), near, distance in _neighbours(values, reach, number):
        theirs = around[:, reach + y : reach + y + height, reach + x : reach + x + width]
        higher = (theirs > density) | ((theirs == density) & (near < number) & (near >= 0))
        closer = higher & (distance < best)
        best, parent = torch.where(closer, distance, best), torch.where(closer, near, parent)
    root = torch.where(best.sqrt() > max_distance, number, parent).flatten(1)
    for _ in range(math.ceil(math.log2(height * width))):
        root = root.gather(1, root)
    return root.view_as(number)


def _neighbours(values: Tensor, reach: int, number: Tensor) -> Iterator[tuple[tuple[int, int], Tensor, Tensor]]:
    """Each offset within `reach`, the number of the pixel there (-1 outside), and the squared distance to it."""
    height, width = values.shape[-2:]
    around, numbers = _pad(values, reach, 0.0), _pad(number, reach, -1)
    for y in range(-reach, reach + 1):
        for x in range(-reach, reach + 1):
            rows, columns = (slice(reach + k, reach + k + side) for k, side in ((y, height), (x, width)))
            distance = (around[:, :, rows, columns] - values).square().sum(1) + (y * y + x * x)
            yield (y, x), numbers[:, rows, columns], distance


def _pad(value: Tensor, reach: int, fill: float) -> Tensor:
    return F.pad(value, [reach] * 4, value=fill)


@torch.no_grad()
def segment_colours(images: Tensor, grid: int) -> Tensor:
    """The segment of each pixel, uint8 [B, h, w] below grid^2, of uint8 images [B, 3, h, w]; the largest is 0.

    LIME's quickshift, but its width is side / (8 grid): 4.7 at the 299 pixels for which LIME takes 4, and a grid of 8;
    4 at 32 pixels would leave one or two segments. Those that are left over beyond grid^2, the smallest, are one.
    """
    kernel = min(images.shape[-2:]) / (8 * grid)
    rows = max(1, MAX_PIXELS // images[0, 0].numel())
    roots = [quickshift(RATIO * to_lab(part), kernel).flatten(1) for part in images.split(rows)]
    root = torch.cat(roots)
    sizes = torch.zeros_like(root).scatter_add(1, root, torch.ones_like(root))
    rank = sizes.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return rank.gather(1, root).clamp(max=grid**2 - 1).to(torch.uint8).view_as(images[:, 0])


@dataclass(frozen=True, eq=False)
class KnownSegments:
    """The segments of all samples, found once; calling it looks up those of a batch without waiting for the device."""

    index: Tensor
    """int64 [N], increasing positions in the split."""
    labels: Tensor
    """uint8 [N, h, w]."""

    @classmethod
    def find(cls, loader: Loader, grid: int, device: torch.device) -> KnownSegments:
        """Of every sample of `loader`, which yields each once and not augmented; each process finds a part."""
        index, labels = [], []
        with closing(loader.epoch(0)) as batches:
            for batch in batches:
                index.append(batch.index.cpu())
                labels.append(segment_colours(batch.images, grid).cpu())
        found = gather_by_index(torch.cat(index), torch.cat(labels))
        return cls(found[0].to(device), found[1].to(device))

    def __call__(self, index: Tensor, images: Tensor) -> Tensor:
        """uint8 [B, h, w] of the samples at positions `index` [B], whatever their images."""
        return self.labels[torch.searchsorted(self.index, index).clamp(max=len(self.index) - 1)]
