"""BatchNorm statistics of a cloned part, estimated anew once filters are gone; no weight changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from recombine.core.distributed import all_reduce_sum, world
from recombine.core.types import Loader
from recombine.models.graph import Traced

__all__ = ["copy_buffers", "find_batchnorms", "recalibrate"]


def copy_buffers(traced: Traced) -> Traced:
    """The network with copies of its buffers; all parameters are the very same tensors, so that nothing is doubled."""
    shared = {id(parameter): parameter for parameter in traced.net.parameters()}
    return Traced(deepcopy(traced.net, shared), traced.graph)


def find_batchnorms(net: nn.Module) -> list[_BatchNorm]:
    """The BatchNorms of a network that keep statistics."""
    return [part for part in net.modules() if isinstance(part, _BatchNorm) and part.running_mean is not None]


@torch.no_grad()
def recalibrate(norms: Sequence[_BatchNorm], forward: Callable[[Tensor], object], loader: Loader) -> None:
    """Set the statistics of `norms` to those of one epoch of `loader`, batches weighing alike.

    `forward` runs the uint8 images of a batch through them; only they are in training mode meanwhile.
    """
    before = [(norm.momentum, norm.training) for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
        norm.train()
    try:
        with closing(loader.epoch(0)) as batches:
            for batch in batches:
                forward(batch.images)
    finally:
        for norm, (momentum, training) in zip(norms, before, strict=True):
            norm.momentum = momentum
            norm.train(training)
    for norm in norms:
        for value in (norm.running_mean, norm.running_var):
            value.copy_(all_reduce_sum(value) / world())
