"""Stitches trained together inside sampled offspring, as SN-Net trains a supernetwork; the parents stay frozen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from recombine.core.distributed import divisor, shared
from recombine.core.labels import IGNORE
from recombine.core.types import Batch, Step
from recombine.engine.method import Method, cross_entropy
from recombine.stitch.search.space import references
from recombine.stitch.supernetwork import Supernetwork
from recombine.stitch.training import TINY, spread

__all__ = ["JointTraining", "divergence", "sample_offspring"]


def sample_offspring(length: int, count: int, stitches: float) -> np.ndarray:
    """Genotypes int8 [count, length] with 1 + Poisson(stitches - 1) stitches on, and an output that the first reaches.

    From torch's global generator, which a run keeps when it is interrupted; of several processes, from the first's.
    """
    switches = length - 1
    more = torch.poisson(torch.full((count,), max(stitches - 1, 0.0))).long().tolist()
    genotypes = np.zeros((count, length), np.int8)
    for genotype, extra in zip(genotypes, more, strict=True):
        on = torch.randperm(switches)[: 1 + extra].numpy()
        genotype[on] = 1
        genotype[-1] = (on[0] % 2, 2)[int(torch.randint(2, ()))]
    return shared(torch.from_numpy(genotypes)).numpy()


def divergence(logits: Tensor, target: Tensor, labels: Tensor) -> Tensor:
    """KL(target || logits) of logarithms of probabilities `target`, mean over images or over pixels that have a class.

    Pixels without one are mostly padding.
    """
    if labels.ndim == 1:
        return F.kl_div(logits.log_softmax(1), target, log_target=True, reduction="batchmean")
    each = F.kl_div(logits.log_softmax(1), target, log_target=True, reduction="none").sum(1)
    known = labels != IGNORE
    return (each * known).sum() / divisor(known.sum())


class JointTraining(Method):
    """The mean loss of `genotypes` offspring that are sampled anew for every batch.

    `joint_features`: the squared error of every stitch that is on, against what the untouched parent computes there,
    over its variance; its input may have passed other stitches. `distill`: KL(parents' ensemble || offspring), for
    which no labels are needed. `labels`: cross entropy.
    """

    frozen = ("net.nets",)
    net: Supernetwork

    def __init__(self, net: Supernetwork, loss: str, genotypes: int, stitches: float, learn_share: bool) -> None:
        """`stitches` on in a sampled offspring, on average; `learn_share`: the weights of both outputs train too."""
        super().__init__(net)
        self.loss, self.genotypes, self.stitches = loss, genotypes, stitches
        net.ensemble.share.requires_grad_(learn_share)

    def forward(self, batch: Batch) -> Step:
        """The loss of a batch; labels are read by `labels` alone, and which pixels have one by `distill`.

        What no sampled offspring has gets a gradient of 0.
        """
        sampled = sample_offspring(len(self.net.genotype), self.genotypes, self.stitches)
        loss = self._features(batch, sampled) if self.loss == "joint_features" else self._outputs(batch, sampled)
        loss = loss + 0 * torch.stack([value.sum() for value in self.parameters() if value.requires_grad]).sum()
        return Step(loss, {"loss": loss.detach()})

    def _outputs(self, batch: Batch, sampled: np.ndarray) -> Tensor:
        """Of the logits."""
        ensemble = references(len(self.net.genotype))[-1:]
        *logits, teacher = self.net.logits(self.net.plan([*sampled, *ensemble]), batch.images)
        if self.loss == "labels":
            return torch.stack([cross_entropy(each, batch.labels) for each in logits]).mean()
        target = teacher.detach().log_softmax(1)
        return torch.stack([divergence(each, target, batch.labels) for each in logits]).mean()

    def _features(self, batch: Batch, sampled: np.ndarray) -> Tensor:
        """Of what stitches give in their offspring."""
        net = self.net
        targets = net.features(batch.images)
        errors: list[Tensor] = []

        def compute(vertex: int, images: Tensor, values: Sequence[Any]) -> Any:
            value = net.compute(vertex, images, values)
            gene = net.graph.vertices[vertex].content
            if isinstance(gene, int):
                target = targets[gene].float()
                errors.append(F.mse_loss(value.float(), target) / spread(target).clamp(min=TINY))
            return value

        net.plan(sampled).run(compute, net.preprocess(batch.images))
        return torch.stack(errors).sum() / len(sampled)
