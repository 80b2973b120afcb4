"""A network that must not change: frozen while something is built on it, and compared bit by bit."""

from __future__ import annotations

import hashlib
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import nn

from recombine.models.model import Model, unwrap

__all__ = ["ModuleState", "digest", "freeze", "hold", "release", "thaw"]


def digest(net: nn.Module) -> str:
    """SHA-256 of a network's state: names, types, shapes and every bit."""
    net = unwrap(net)
    net = unwrap(net.net) if isinstance(net, Model) else net
    value = hashlib.sha256()
    for key, tensor in sorted(net.state_dict().items()):
        value.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
        value.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return value.hexdigest()


ModuleState = tuple[dict[str, bool], dict[str, bool]]
"""Which modules of a network are in training mode, and which parameters take gradients, by name."""

_held: WeakKeyDictionary[nn.Module, tuple[ModuleState, WeakSet]] = WeakKeyDictionary()
"""Networks that others hold frozen: how they were before the first, and who holds them."""


def freeze(net: nn.Module) -> ModuleState:
    """Put `net` in eval mode without gradients; returns what `thaw` restores."""
    before = (
        {name: module.training for name, module in net.named_modules()},
        {name: parameter.requires_grad for name, parameter in net.named_parameters()},
    )
    net.eval().requires_grad_(False)
    return before


def thaw(net: nn.Module, before: ModuleState) -> None:
    """Restore the mode and gradient flag of every part of `net`."""
    modes, flags = before
    for name, module in net.named_modules():
        module.training = modes[name]
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(flags[name])


def hold(net: nn.Module, holder: nn.Module) -> ModuleState:
    """Freeze `net` for as long as one of its holders has not released it; returns what it was before the first."""
    before = freeze(net)
    if not _held.get(net, ((), ()))[1]:
        _held[net] = before, WeakSet()
    _held[net][1].add(holder)
    return _held[net][0]


def release(net: nn.Module, holder: nn.Module, before: ModuleState) -> None:
    """Give `net` back; the last of its holders restores what `hold` gave. A copy of a holder releases its copy."""
    _, holders = _held.get(net, (before, WeakSet()))
    holders.discard(holder)
    if not holders:
        thaw(net, before)
        _held.pop(net, None)
