"""Adapted baselines of Table 1 as removable patches: residual adapters and BatchNorm adaptation."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from recombine.core.errors import ConfigError
from recombine.models.graph import Traced
from recombine.patch.method_settings import NormAdaptationSettings, ResidualAdaptersSettings
from recombine.patch.patched import Edit, Patch, TaskNetwork, called_once, calls, map_outputs

__all__ = ["NormAdaptation", "ResidualAdapters", "dua_momenta"]

DUA_IMAGES, DUA_VIEWS, DUA_PADDING = 80, 64, 4
DUA_FIRST, DUA_DECAY, DUA_FLOOR = 0.1, 0.94, 0.005


class _WithNorms(Patch):
    """Every BatchNorm of the network gets a copy for the task, which starts as the pretrained one.

    Where a network has none, the same goes for its LayerNorms and GroupNorms.
    """

    def __init__(self, traced: Traced, classes: int, **options) -> None:
        super().__init__(traced, classes, **options)
        affine: list[Any] = [*calls(traced, nn.LayerNorm), *calls(traced, nn.GroupNorm)]
        batch_norms: list[Any] = calls(traced, nn.BatchNorm2d)
        self._norm_calls = batch_norms or [(n, m) for n, m in affine if m.state_dict()]
        self.norms = nn.ModuleList(copy.deepcopy(norm) for _, norm in self._norm_calls)
        self.norms.requires_grad_(True)

    def insert(self, edit: Edit) -> None:
        """Replace the network's BatchNorms by the task's."""
        for number, (node, _) in enumerate(self._norm_calls):
            place = edit.at(node)
            edit.replace(node, edit.call(f"norms.{number}", place.args[0], after=place))

    def fold(self, net: nn.Module) -> None:
        """Put the task's norms in the place of the network's."""
        for path, norm in zip(called_once(self._norm_calls), self.norms, strict=True):
            net.set_submodule(path, copy.deepcopy(norm).eval())


class ResidualAdapters(_WithNorms):
    """Residual adapters at every 3x3 convolution (Rebuffi et al. 2017, 2018) with task-specific BatchNorm.

    parallel: conv(x) + A x;  series: v + A BN'(v) with v = conv(x);  A is a 1x1 convolution without bias, drawn from
    N(0, 2 / channels out).
    """

    def __init__(self, traced: Traced, classes: int, *, position: str = "parallel") -> None:
        ResidualAdaptersSettings.of({"position": position}, "method")
        super().__init__(traced, classes, position=position)
        self._convolutions = [(node, conv) for node, conv in calls(traced, nn.Conv2d) if conv.kernel_size == (3, 3)]
        if not self._convolutions:
            raise ConfigError(f"{type(traced.net).__name__} has no 3x3 convolution, where adapters are attached")
        self.adapters = nn.ModuleList(_adapter(conv, position) for _, conv in self._convolutions)

    def insert(self, edit: Edit) -> None:
        """Add the adapters, then exchange the BatchNorms."""
        for number, (node, _) in enumerate(self._convolutions):
            place = edit.at(node)
            source = place.args[0] if self.options["position"] == "parallel" else place
            added = edit.call(f"adapters.{number}", source, after=place)
            edit.add(node, added)
        super().insert(edit)

    def fold(self, net: nn.Module) -> None:
        """parallel: A at the centre of the convolution. series: (I + A BN') after it, in its weights and bias."""
        for path, adapter in zip(called_once(self._convolutions), self.adapters, strict=True):
            conv: Any = net.get_submodule(path)
            if conv.groups > 1:
                raise ConfigError(f"{path} is a grouped convolution, into which its adapter cannot be merged")
            if isinstance(adapter, nn.Conv2d):
                conv.weight[:, :, 1, 1] += adapter.weight[:, :, 0, 0]
            else:
                _fold_series(conv, *adapter)  # type: ignore[misc]
        super().fold(net)


class NormAdaptation(_WithNorms):
    """Adaptation of normalisation layers.

    `affine` trains scales, shifts and statistics of the task with labels. `dua` adapts the statistics of BatchNorms
    alone, without labels or gradients (Mirza et al. 2022, one image in 64 views at a time, 80 images).

    Deviation: the images are training images of the task, where DUA takes the test images as they come in: a patch is
    finished, and its classifier trained, before it is used.
    Deviation: what is left after the last image counts, where DUA's code reports the best step on the test images.
    """

    def __init__(self, traced: Traced, classes: int, *, mode: str = "affine") -> None:
        NormAdaptationSettings.of({"mode": mode}, "method")
        super().__init__(traced, classes, mode=mode)
        if not self._norm_calls or (mode == "dua" and not isinstance(self._norm_calls[0][1], nn.BatchNorm2d)):
            what = "no normalisation layer" if not self._norm_calls else "no BatchNorm, whose statistics dua adapts"
            raise ConfigError(f"{type(traced.net).__name__} has {what}; method=ssf adapts any network")
        self.norms.requires_grad_(mode == "affine")

    def train(self, mode: bool = True) -> NormAdaptation:
        """Statistics found by DUA stay as they are while the classifier is trained."""
        super().train(mode)
        if self.options["mode"] == "dua":
            self.norms.eval()
        return self

    @torch.no_grad()
    def prepare(self, patched: TaskNetwork, images: Callable[[int], Tensor], seed: int) -> None:
        """Adapt the statistics to the images, one after the other (DUA)."""
        if self.options["mode"] != "dua":
            return
        generator = torch.Generator().manual_seed(seed)
        patched.eval()
        stream = images(DUA_IMAGES)
        for image, momentum in zip(stream, dua_momenta(len(stream)), strict=True):
            for norm in self.norms:
                norm.train()
                norm.momentum = momentum  # type: ignore[assignment]
            patched(_views(image, generator))
        self.norms.eval()


def _fold_series(conv: nn.Conv2d, norm: nn.BatchNorm2d, adapter: nn.Conv2d) -> None:
    """v + A (g v + h) = (I + A g) v + A h, with the scale g and shift h of BatchNorm in evaluation."""
    matrix = adapter.weight[:, :, 0, 0].double()
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()  # type: ignore[union-attr]
    shift = norm.bias.double() - norm.running_mean.double() * scale  # type: ignore[union-attr]
    map_outputs(conv, torch.eye(len(matrix)).to(matrix) + matrix * scale, matrix @ shift)


def dua_momenta(count: int) -> list[float]:
    """DUA's momentum for each image: m_k = 0.94 m_{k-1} with m_0 = 0.1, plus 0.005."""
    return [DUA_FIRST * DUA_DECAY**k + DUA_FLOOR for k in range(1, count + 1)]


def _views(image: Tensor, generator: torch.Generator) -> Tensor:
    """Shifted by up to 4 pixels, mirrored, rotated by quarter turns: [64, 3, H, W] of one [3, H, W]."""
    padded = nn.functional.pad(image, [DUA_PADDING] * 4)
    height, width = image.shape[-2:]
    views = []
    for _ in range(DUA_VIEWS):
        top, left, mirror, turns = (int(torch.randint(n, (), generator=generator)) for n in (9, 9, 2, 4))
        view = padded[:, top : top + height, left : left + width]
        views.append(torch.rot90(view.flip(-1) if mirror else view, turns, (1, 2)))
    return torch.stack(views)


def _adapter(conv: nn.Conv2d, position: str) -> nn.Module:
    parallel = position == "parallel"
    inputs, stride = (conv.in_channels, conv.stride) if parallel else (conv.out_channels, (1, 1))
    adapter = nn.Conv2d(inputs, conv.out_channels, 1, stride, bias=False)  # type: ignore[arg-type]
    nn.init.normal_(adapter.weight, std=math.sqrt(2 / conv.out_channels))
    return adapter if parallel else nn.Sequential(nn.BatchNorm2d(inputs), adapter)
