"""A discriminator and the network it judges, trained in one step: the uniform prior and ADDA."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from recombine.core.distributed import own_rows, shared, world
from recombine.core.types import Batch, Step
from recombine.engine.method import Method
from recombine.patch.end_to_end.method import EndToEnd
from recombine.patch.patched import TaskNetwork

__all__ = ["Adda", "UniformPrior"]

HIDDEN = 500
"""Width of the discriminator, as in ADDA's code."""


class UniformPrior(EndToEnd):
    """Uniform prior on the features z that enter the classifier (Sinha et al. 2020):

        L = CE + weight E[-log D(z)],    D learns  E[-log D(u)] + E[-log(1 - D(z))],    u ~ U(-1, 1)^d

    Deviation: their text was not at hand; the form of the loss, D and the weight are a reading of its description.
    """

    def __init__(self, net: TaskNetwork, *, weight: float = 0.1, **options: Any) -> None:
        super().__init__(net, **options)
        self.weight = weight
        self.discriminator = discriminator(net, outputs=1)

    def penalty(self, batch: Batch, features: Tensor) -> Tensor:
        """The encoder's term and the discriminator's own loss, whose gradients do not mix."""
        uniform = own_rows(shared(torch.rand_like(features.repeat(world(), 1)))) * 2 - 1
        fooled = F.softplus(-fixed(self.discriminator, features)).mean()  # -log D(z), D the sigmoid of the output
        judged = (
            F.softplus(-self.discriminator(uniform)).mean() + F.softplus(self.discriminator(features.detach())).mean()
        )
        return self.weight * fooled + judged


class Adda(Method):
    """The second stage of ADDA (Tzeng et al. 2017); batches hold images of the source and, behind them, of the target.

    The target's encoder, a copy of the source's, learns with inverted labels and the discriminator with true ones, in
    the same step; the source's encoder and the classifier do not train, and no label is read.

    Deviation: the discriminator sees the features, where ADDA's code gives it the ten outputs of a LeNet.
    Deviation: BatchNorms of the target's encoder take statistics of target images; LeNet has none.
    """

    net: TaskNetwork

    def __init__(self, net: TaskNetwork) -> None:
        super().__init__(net)
        self.frozen = ("source", "net.patch.head", f"net.base.{net.patch.head_name}")
        self.source: TaskNetwork = copy.deepcopy(net)
        self.discriminator = discriminator(net, outputs=2)

    def forward(self, batch: Batch) -> Step:
        """The loss of one batch: the discriminator's and the encoder's, whose gradients do not mix."""
        first, second = batch.images.chunk(2)
        with torch.no_grad():
            source = self.source.features_and_logits(first)[0]
        target = self.net.features_and_logits(second)[0]
        is_source = torch.cat([source.new_ones(len(source)), source.new_zeros(len(target))]).long()
        judged = F.cross_entropy(self.discriminator(torch.cat([source, target.detach()])), is_source)
        fooled = F.cross_entropy(fixed(self.discriminator, target), is_source[: len(target)])
        return Step(judged + fooled, {"discriminator": judged.detach(), "loss": fooled.detach()})


def discriminator(net: TaskNetwork, outputs: int) -> nn.Module:
    """Three layers on the features that enter the classifier."""
    head: Any = net.patch.head
    width = head.in_features if isinstance(head, nn.Linear) else head.in_channels
    hidden = [nn.Linear(width, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU()]
    return nn.Sequential(*hidden, nn.Linear(HIDDEN, outputs))


def fixed(module: nn.Module, inputs: Tensor) -> Tensor:
    """What `module` gives, with gradients for the inputs and none for its parameters."""
    return functional_call(module, {name: value.detach() for name, value in module.named_parameters()}, (inputs,))
