"""A patch folded into the weights of its network, where what it adds is linear: one network, as fast as the base."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from recombine.core.errors import ConfigError
from recombine.patch.patched import TaskNetwork

__all__ = ["merge"]

TOLERANCE = 1e-3
"""Largest difference between the two networks, in units of the largest output."""


def merge(patched: TaskNetwork) -> nn.Module:
    """A network of the base's class with the patch in its weights and the patch's classifier, in eval mode.

    It gives what the patched network gives, to rounding, for images as the base takes them (normalised floats); all
    of it can be trained. Convolutions get biases where an addition needs them. The patched network stays as it is.
    Raises ConfigError for a patch that cannot be folded: delta-networks weigh skips by the image.
    """
    patch, net = patched.patch, copy.deepcopy(patched.base).eval()
    with torch.no_grad():
        patch.fold(net)
    if patch.head is not None:
        net.set_submodule(patch.head_name, copy.deepcopy(patch.head))
        if hasattr(net, "num_classes"):  # timm's
            net.num_classes = patch.classes  # type: ignore[assignment]
    if not _same(patched, net):
        raise ConfigError(
            f"{type(patch).__name__} cannot be merged into {type(net).__name__}: its layers change their weights on "
            f"the way, and the merged network gives something else"
        )
    return net.requires_grad_()


@torch.no_grad()
def _same(patched: TaskNetwork, merged: nn.Module) -> bool:
    """Whether both give the same for noise."""
    like = next(patched.base.parameters())
    shape = next(n for n in patched.patch.traced.graph.nodes if n.op == "placeholder").meta["shape"]
    noise = torch.randn(2, *shape[1:], generator=torch.Generator().manual_seed(0)).to(like)
    if not isinstance(patched.preprocess, nn.Identity):
        noise = 128 + 64 * noise
    training = patched.training
    own = tree_leaves(patched.eval()(noise))
    patched.train(training)
    other = tree_leaves(merged(patched.preprocess(noise)))
    return all((a - b).abs().max() <= TOLERANCE * a.abs().max() for a, b in zip(own, other, strict=True))
