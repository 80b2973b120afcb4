"""The residual networks for 32-pixel images of He et al. 2016 (Deep Residual Learning), section 4.2."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["CifarResNet"]


class PadShortcut(nn.Module):
    """Option A: every second pixel, and zero channels on both sides; no parameters.

    The paper leaves open where the zero channels stand; the public checkpoints expect half of them on each side.
    """

    def __init__(self, extra: int) -> None:
        super().__init__()
        self.before, self.after = extra // 2, extra - extra // 2

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C + extra, ceil(H / 2), ceil(W / 2)]."""
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.after))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm, and the identity or a shortcut that halves the map."""

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 and shortcut == "A":
            self.downsample = PadShortcut(outputs - inputs)
        elif stride != 1:
            conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] -> [B, outputs, H / stride, W / stride]."""
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.downsample(x))


class CifarResNet(nn.Module):
    """Depth 6n + 2: a 3x3 stem, three stages of n blocks (width, 2 width, 4 width channels), average pool, linear."""

    def __init__(
        self, classes: int, depth: int = 20, width: int = 16, shortcut: str = "A", head: str = "linear"
    ) -> None:
        """`shortcut` A (zeros) or B (1x1 convolution); `head` is the classifier's name in checkpoints: linear or fc."""
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        blocks = (depth - 2) // 6
        stages = [(width, width), (width, 2 * width), (2 * width, 4 * width)]
        for stage, (inputs, outputs) in enumerate(stages, start=1):
            first = BasicBlock(inputs, outputs, 1 if stage == 1 else 2, shortcut)
            rest = [BasicBlock(outputs, outputs, 1, shortcut) for _ in range(blocks - 1)]
            self.add_module(f"layer{stage}", nn.Sequential(first, *rest))
        self.avgpool = nn.Sequential(OrderedDict(pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten()))
        self.add_module(head, nn.Linear(4 * width, classes))
        self.head = head
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] -> logits [B, classes]."""
        x = F.relu(self.bn1(self.conv1(x)))
        for stage in ("layer1", "layer2", "layer3"):
            x = self.get_submodule(stage)(x)
        return self.get_submodule(self.head)(self.avgpool(x))
