"""Two published tiny networks in the form of their checkpoints: MLPerf Tiny's ResNet-8 and a MicroNet entry."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["MLPerfResNet8", "MicroNet"]


class MLPerfResNet8(nn.Module):
    """The image classifier of MLPerf Tiny: three residual stages of 16, 32, 64 channels; convolutions have biases.

    Padded as TensorFlow's SAME: on the even sides it meets, a 3x3 convolution of stride 2 pads right and below only.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        # conv5 and conv8 are the 1x1 shortcuts of the second and third stage, without BatchNorm.
        plan = [(3, 16, 3, 1), (16, 16, 3, 1), (16, 16, 3, 1), (16, 32, 3, 2), (32, 32, 3, 1), (16, 32, 1, 2)]
        plan += [(32, 64, 3, 2), (64, 64, 3, 1), (32, 64, 1, 2)]
        for i, (inputs, outputs, kernel, stride) in enumerate(plan):
            padding = 1 if (kernel, stride) == (3, 1) else 0
            self.add_module(f"conv{i}", nn.Conv2d(inputs, outputs, kernel, stride, padding))
        for i, channels in enumerate([16, 16, 16, 32, 32, 64, 64]):
            self.add_module(f"bn{i}", nn.BatchNorm2d(channels, eps=1e-3))
        self.fc = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] with H and W divisible by 4 -> logits [B, classes]."""
        net: Any = self  # its layers are added by name
        x = F.relu(net.bn0(net.conv0(x)))
        x = F.relu(net.bn2(net.conv2(F.relu(net.bn1(net.conv1(x))))) + x)
        y = F.relu(net.bn3(net.conv3(F.pad(x, (0, 1, 0, 1)))))
        x = F.relu(net.bn4(net.conv4(y)) + net.conv5(x))
        y = F.relu(net.bn5(net.conv6(F.pad(x, (0, 1, 0, 1)))))
        x = F.relu(net.bn6(net.conv7(y)) + net.conv8(x))
        return net.fc(x.mean((2, 3)))


class MicroNetBlock(nn.Module):
    """Inverted residual: expand, depth-wise 3x3, project; squeeze-excitation and the shortcut only at stride 1."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: float) -> None:
        super().__init__()
        self.stride, hidden = stride, int(inputs * expansion)
        self.conv1 = nn.Conv2d(inputs, hidden, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv2 = nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.conv3 = nn.Conv2d(hidden, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        # The checkpoints hold fc1 and fc2 of every block, also where stride 2 leaves them unused.
        self.fc1 = nn.Conv2d(outputs, outputs // 4, 1)
        self.fc2 = nn.Conv2d(outputs // 4, outputs, 1)
        self.shortcut: nn.Module = nn.Identity()
        if stride == 1 and inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] -> [B, outputs, H / stride, W / stride]."""
        y = F.hardswish(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(F.hardswish(self.bn2(self.conv2(y)))))
        if self.stride != 1:
            return y
        gate = self.fc2(F.hardswish(self.fc1(y.mean((2, 3), keepdim=True)))).sigmoid()
        return y * gate + self.shortcut(x)


class MicroNet(nn.Module):
    """The MobileNetV3-like CIFAR-100 network of a 2019 MicroNet-challenge entry: sixteen blocks after a 3x3 stem."""

    def __init__(
        self,
        classes: int,
        widths: Sequence[int] = (16, 16, 32, 32, 48, 48, 48, 72, 72, 72, 72, 72, 80, 88, 88, 106),
        expansion: float = 3.0,
        stem: int = 32,
        stride_two: Sequence[int] = (2, 7, 12),
    ) -> None:
        """`widths` of the blocks' outputs; blocks whose position (from 0) is in `stride_two` halve the map."""
        super().__init__()
        self.conv1 = nn.Conv2d(3, stem, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        pairs = zip([stem, *widths[:-1]], widths, strict=True)
        self.layers = nn.Sequential(
            *(MicroNetBlock(a, b, 2 if i in stride_two else 1, expansion) for i, (a, b) in enumerate(pairs))
        )
        self.linear = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] -> logits [B, classes]."""
        x = self.layers(F.hardswish(self.bn1(self.conv1(x))))
        return self.linear(x.mean((2, 3)))
