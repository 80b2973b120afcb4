"""A small network."""

from itertools import pairwise

from torch import Tensor, nn

__all__ = ["ShapeNet"]


class ShapeNet(nn.Module):
    """Three convolutions and a classifier; takes normalised images [B, 3, H, W]."""

    def __init__(self, classes: int, width: int = 16) -> None:
        super().__init__()
        widths = (3, width, 2 * width, 4 * width)
        blocks = [
            nn.Sequential(nn.Conv2d(a, b, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU())
            for a, b in pairwise(widths)
        ]
        self.features = nn.Sequential(*blocks)
        self.fc = nn.Linear(widths[-1], classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.features(images).mean((2, 3)))
