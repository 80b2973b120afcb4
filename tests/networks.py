"""Random weights that make every layer matter."""

from __future__ import annotations

from torch import Generator, nn, rand


def shaken(net: nn.Module) -> nn.Module:
    """Give BatchNorms statistics, scales and shifts, and layers biases, that are not those of a fresh network."""
    generator = Generator().manual_seed(0)
    for name, value in net.state_dict().items():
        if value.is_floating_point() and value.ndim == 1:
            spread = rand(value.shape, generator=generator)
            value.copy_(0.5 + spread if "var" in name or "weight" in name else spread - 0.5)
    return net.eval()
