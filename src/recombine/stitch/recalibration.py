"""BatchNorm statistics of offspring: what stands behind a stitch sees features that its parent never had."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from inspect import signature
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.nn import functional as F

from recombine.core.distributed import all_reduce_sum, world
from recombine.core.errors import ConfigError
from recombine.stitch.execution_plan import ExecutionPlan
from recombine.stitch.supernetwork import Supernetwork

__all__ = ["Statistics", "recalibrate"]

CALL = signature(F.batch_norm)
BUFFERS = ("running_mean", "running_var", "weight", "bias")
"""What a call of `F.batch_norm` is given beside its input."""
Layer = Callable[..., Tensor]
"""What a step computes from the values that it reads."""


class Statistics(NamedTuple):
    """BatchNorm statistics of the offspring of a plan."""

    layers: dict[int, Layer]
    """By step, for `ExecutionPlan.run`."""
    buffers: dict[str, Tensor]
    """By name in an offspring by itself; of a plan of one network."""


class _BatchNorm:
    """A BatchNorm behind a stitch: normalises by each batch and adds up its statistics, then by their mean."""

    def __init__(self, names: tuple[str, str], weight: Tensor | None, bias: Tensor | None, eps: float) -> None:
        """`names` of its running mean and variance in an offspring by itself."""
        self.names, self.weight, self.bias, self.eps = names, weight, bias, eps
        self.mean: Any = 0.0
        self.variance: Any = 0.0
        self.batches = 0

    def estimate(self, value: Tensor, *_: Any) -> Tensor:
        """Normalise by the batch [B, C, ...], and add its mean and unbiased variance to the sums."""
        if value[:, 0].numel() < 2:
            raise ConfigError(
                "bn_images: one image has no statistics where maps are one pixel; set bn_images to a multiple of "
                "batch_size (two at least in each process)"
            )
        mean, variance = value.new_zeros((2, value.shape[1]), dtype=torch.float32)
        normalised = F.batch_norm(value, mean, variance, self.weight, self.bias, True, 1.0, self.eps)
        self.mean, self.variance, self.batches = self.mean + mean, self.variance + variance, self.batches + 1
        return normalised

    def finish(self) -> Layer:
        """Normalise by the means of the sums over all processes from now on."""
        batches = world() * self.batches
        self.mean, self.variance = (all_reduce_sum(total) / batches for total in (self.mean, self.variance))
        return lambda value, *_: F.batch_norm(
            value, self.mean, self.variance, self.weight, self.bias, False, 0.0, self.eps
        )


@torch.no_grad()
def recalibrate(net: Supernetwork, plan: ExecutionPlan, batches: Iterable[Tensor]) -> Statistics:
    """Statistics of the BatchNorms behind stitches, from images (uint8 [B, 3, H, W] each) through the plan.

    As `torch.optim.swa_utils.update_bn` does it: layers normalise by the batch, and the means over all batches stay.
    A layer that a network calls twice keeps its parent's statistics.
    """
    found = dict(_batch_norms(net, plan))
    estimates: dict[int, Layer] = {step: layer.estimate for step, layer in found.items()}
    for images in batches if found else ():
        plan.run(net.compute, net.preprocess(images), estimates)
    layers = {step: layer.finish() for step, layer in found.items()}
    buffers = {
        name: value
        for layer in found.values()
        for name, value in zip(layer.names, (layer.mean, layer.variance), strict=True)
    }
    return Statistics(layers, buffers)


def _batch_norms(net: Supernetwork, plan: ExecutionPlan) -> Iterator[tuple[int, _BatchNorm]]:
    """The BatchNorms behind a stitch, by their step."""
    calls = Counter((v.side, v.content.target) for v in net.graph.vertices if isinstance(v.content, Node))
    stitched: list[bool] = []
    for step, (vertex, sources) in enumerate(plan.steps):
        side, node, *_ = net.graph.vertices[vertex]
        stitched.append(isinstance(node, int) or any(stitched[source] for source in sources))
        if isinstance(node, int) or not stitched[-1]:
            continue
        root, prefix = net.nets[side], "ab"[side]
        layer = root.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            if layer.track_running_stats and calls[side, node.target] == 1:
                names = (f"{prefix}.{node.target}.running_mean", f"{prefix}.{node.target}.running_var")
                yield step, _BatchNorm(names, layer.weight, layer.bias, layer.eps)
        elif node.target is F.batch_norm:
            given: dict[str, Any] = CALL.bind(*node.args, **node.kwargs).arguments
            parts = [given.get(name) for name in BUFFERS]
            if all(isinstance(part, Node) for part in parts):
                mean, variance, weight, bias = (str(part.target) for part in parts if part is not None)
                affine = (root.get_parameter(weight), root.get_parameter(bias))
                eps = float(given.get("eps", 1e-5))
                yield step, _BatchNorm((f"{prefix}.{mean}", f"{prefix}.{variance}"), *affine, eps)
