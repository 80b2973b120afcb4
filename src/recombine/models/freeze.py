"""A network that must not change: frozen while something is built on it, and compared bit by bit."""

from __future__ import annotations

import hashlib
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import nn

from recombine.models.model import Model, unwrap

__all__ = ["ModuleState", "digest", "freeze", "freeze_shared", "unfreeze", "unfreeze_shared"]


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

_shared: WeakKeyDictionary[nn.Module, tuple[ModuleState, WeakSet]] = WeakKeyDictionary()
"""Networks that several others are built on: how they were before the first, and these."""


def freeze(net: nn.Module) -> ModuleState:
    """Put `net` in eval mode without gradients; returns what `unfreeze` restores."""
    before = (
        {name: module.training for name, module in net.named_modules()},
        {name: parameter.requires_grad for name, parameter in net.named_parameters()},
    )
    net.eval().requires_grad_(False)
    return before


def unfreeze(net: nn.Module, before: ModuleState) -> None:
    """Restore the mode and gradient flag of every part of `net`."""
    modes, flags = before
    for name, module in net.named_modules():
        module.training = modes[name]
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(flags[name])


def freeze_shared(net: nn.Module, user: nn.Module) -> ModuleState:
    """Freeze `net` until all its users have called `unfreeze_shared`; returns what it was before the first."""
    before = freeze(net)
    if not _shared.get(net, ((), ()))[1]:
        _shared[net] = before, WeakSet()
    _shared[net][1].add(user)
    return _shared[net][0]


def unfreeze_shared(net: nn.Module, user: nn.Module, before: ModuleState) -> None:
    """Restore what `freeze_shared` gave, unless another user is left. A copy of a user unfreezes its copy of `net`."""
    _, users = _shared.get(net, (before, WeakSet()))
    users.discard(user)
    if not users:
        unfreeze(net, before)
        _shared.pop(net, None)
