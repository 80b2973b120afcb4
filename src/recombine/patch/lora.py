"""Patches that change what a layer computes linearly, and leave its weights alone: LoRA and SSF."""

from __future__ import annotations

import math
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from recombine.core.errors import ConfigError
from recombine.models.graph import Traced
from recombine.patch.method_settings import LoRASettings, ScaleShiftSettings
from recombine.patch.patched import Edit, Patch, called_once, calls, map_outputs

__all__ = ["LoRA", "ScaleShift"]


class LoRA(Patch):
    """Low-rank adaptation of convolutions and linear layers (Hu et al. 2022), for convolutions as peft has it:

        conv(x) + s B A x,    A: k x k, C -> rank, with the convolution's stride;  B: 1 x 1, rank -> C out

    The factor s is alpha / rank. B starts at zero, so that the network starts as the base. Grouped convolutions and the
    classifier are left out.
    """

    def __init__(self, traced: Traced, classes: int, *, rank: int = 4, alpha: float | None = None) -> None:
        """`alpha`: by default the rank, which makes the factor s one."""
        LoRASettings.of({"rank": rank, "alpha": alpha}, "method")
        super().__init__(traced, classes, rank=rank, alpha=alpha)
        self.scale = 1.0 if alpha is None else alpha / rank
        found = [*calls(traced, nn.Conv2d), *calls(traced, nn.Linear)]
        self._layers = [(n, m) for n, m in found if n.target != self.head_name and getattr(m, "groups", 1) == 1]
        if not self._layers:
            raise ConfigError(f"{type(traced.net).__name__} has no convolution or linear layer to adapt; method=fc")
        self.pairs = nn.ModuleList(_low_rank(layer, rank) for _, layer in self._layers)

    def insert(self, edit: Edit) -> None:
        """Add s B A x to what each layer gives for x."""
        for number, (node, _) in enumerate(self._layers):
            place = edit.at(node)
            added = edit.call(f"pairs.{number}", place.args[0], after=place)
            if self.scale != 1:
                added = edit.function(torch.mul, added, self.scale, after=added)
            edit.add(node, added)

    def fold(self, net: nn.Module) -> None:
        """Add s B A to the weights."""
        pairs: Any = self.pairs
        for path, (down, up) in zip(called_once(self._layers), pairs, strict=True):
            layer: Any = net.get_submodule(path)
            product = up.weight.flatten(1).double() @ down.weight.flatten(1).double()
            layer.weight += (self.scale * product).view_as(layer.weight).to(layer.weight)


class ScaleShift(Patch):
    """SSF (Lian et al. 2022): gamma x + beta for each channel x that a convolution or linear layer gives.

    gamma starts at one and beta at zero, so that the network starts as the base. The classifier is left out.
    """

    def __init__(self, traced: Traced, classes: int) -> None:
        ScaleShiftSettings.of({}, "method")
        super().__init__(traced, classes)
        found = [*calls(traced, nn.Conv2d), *calls(traced, nn.Linear)]
        self._layers = [(node, layer) for node, layer in found if node.target != self.head_name]
        if not self._layers:
            raise ConfigError(f"{type(traced.net).__name__} has no convolution or linear layer to scale; method=fc")
        self.scales = nn.ModuleList(ChannelScale(layer) for _, layer in self._layers)

    def insert(self, edit: Edit) -> None:
        """Scale and shift what each layer gives."""
        for number, (node, _) in enumerate(self._layers):
            value = edit.at(node)
            edit.replace(node, edit.call(f"scales.{number}", value, after=value))

    def fold(self, net: nn.Module) -> None:
        """Multiply the weights by gamma, and add beta to the bias."""
        scales: Any = self.scales
        for path, scale in zip(called_once(self._layers), scales, strict=True):
            gamma, beta = (value.flatten().double() for value in (scale.gamma, scale.beta))
            map_outputs(net.get_submodule(path), gamma.diag(), beta)


class ChannelScale(nn.Module):
    """gamma x + beta for each channel: axis 1 of what a convolution gives, the last axis of a linear layer's."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        shape = (-1, 1, 1) if isinstance(layer, nn.Conv2d) else (-1,)
        channels = layer.out_channels if isinstance(layer, nn.Conv2d) else layer.out_features
        self.gamma = nn.Parameter(torch.ones(channels).view(shape))
        self.beta = nn.Parameter(torch.zeros(channels).view(shape))

    def forward(self, x: Tensor) -> Tensor:
        """The shape of `x`."""
        return torch.addcmul(self.beta, x, self.gamma)


def _narrowed(layer: nn.Conv2d, rank: int) -> nn.Module:
    """A convolution to `rank` channels that strides and pads as `layer` does, also in a way of its own."""
    if type(layer) is not nn.Conv2d and {name for name, _ in layer.named_parameters()} <= {"weight", "bias"}:
        own = deepcopy(layer)  # such as timm's Conv2dSame, which pads by the size of its input
        own.out_channels, own.bias = rank, None
        own.weight = nn.Parameter(layer.weight.new_empty(rank, *layer.weight.shape[1:]))
        return own.requires_grad_()
    names = ("kernel_size", "stride", "padding", "dilation", "padding_mode")
    settings: dict[str, Any] = {name: getattr(layer, name) for name in names}
    return nn.Conv2d(layer.in_channels, rank, bias=False, **settings)


def _low_rank(layer: Any, rank: int) -> nn.Module:
    if isinstance(layer, nn.Conv2d):
        down: nn.Module = _narrowed(layer, rank)
        up: nn.Module = nn.Conv2d(rank, layer.out_channels, 1, bias=False)
    else:
        down, up = nn.Linear(layer.in_features, rank, bias=False), nn.Linear(rank, layer.out_features, bias=False)
    nn.init.kaiming_uniform_(down.weight, a=math.sqrt(5))  # type: ignore[arg-type]
    nn.init.zeros_(up.weight)  # type: ignore[arg-type]
    return nn.Sequential(down, up)
