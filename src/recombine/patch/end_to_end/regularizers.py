"""Regularizers of fine-tuning (Table 5) that need one more term: BSS, LWF, Co-Tuning and StochNorm."""

from __future__ import annotations

import copy
from contextlib import closing
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from recombine.core.distributed import all_reduce_sum, gather_batch, shared
from recombine.core.errors import ConfigError
from recombine.core.types import Batch, Loader
from recombine.engine.evaluate import evaluating
from recombine.patch.end_to_end.method import EndToEnd
from recombine.patch.patched import TaskNetwork

__all__ = ["BSS", "LWF", "CoTuning", "StochNorm"]


class BSS(EndToEnd):
    """Batch spectral shrinkage (Chen et al. 2019): weight * the sum of the `smallest` smallest squared singular values.

    They are those of a batch's features [B, D].
    """

    def __init__(self, net: TaskNetwork, *, weight: float = 0.001, smallest: int = 1, **options: Any) -> None:
        super().__init__(net, **options)
        self.weight, self.smallest = weight, smallest

    def penalty(self, batch: Batch, features: Tensor) -> Tensor:
        """Of this batch."""
        return self.weight * torch.linalg.svdvals(gather_batch(features))[-self.smallest :].square().sum()


class LWF(EndToEnd):
    """Learning without forgetting (Li and Hoiem 2016), for fine-tuning as the Transfer-Learning-Library has it:

        weight * mean KL(softmax(y_0 / T) || softmax(y / T))

    y_0 are logits of the base as it was, y those of its classifier, which does not train, on the features of now.

    Deviation: y_0 is computed on the very view that is trained on; that library keeps those of one view of each image.
    """

    def __init__(self, net: TaskNetwork, *, weight: float = 4.0, temperature: float = 3.0, **options: Any) -> None:
        super().__init__(net, **options)
        self.weight, self.temperature = weight, temperature
        self.source = copy.deepcopy(net.base)
        self.frozen = (*self.frozen, "source")

    def penalty(self, batch: Batch, features: Tensor) -> Tensor:
        """Of this batch."""
        with torch.no_grad():
            before = self.source(self.net.preprocess(batch.images)).float()
        now = source_logits(self.net, features)
        told = F.softmax(before / self.temperature, 1)
        return self.weight * F.kl_div(F.log_softmax(now / self.temperature, 1), told, reduction="batchmean")


class CoTuning(EndToEnd):
    """Co-Tuning (You et al. 2020): weight * mean -sum_s p(s | t) log softmax(y)_s

    y are the logits of the base's own classifier, which trains too; p(s | t) is the mean softmax of the base as it was
    over the training images of class t.
    """

    relationship: Tensor

    def __init__(self, net: TaskNetwork, *, weight: float = 2.3, **options: Any) -> None:
        super().__init__(net, **options)
        self.weight, self.frozen = weight, ()
        head: Any = net.base.get_submodule(net.patch.head_name)
        self.register_buffer("relationship", head.weight.new_zeros(net.patch.classes, len(head.weight)))

    def prepare(self, images: Loader) -> None:
        """Fill `relationship` [classes, classes of the base], p(s | t), from every training image once."""
        sums = torch.zeros_like(self.relationship, dtype=torch.double)
        counts = sums.new_zeros(len(sums))
        with evaluating(self.net), closing(images.epoch(0)) as batches:
            for batch in batches:
                told = F.softmax(self.net.base(self.net.preprocess(batch.images)).double(), 1)
                sums.index_add_(0, batch.labels, told)
                counts.index_add_(0, batch.labels, torch.ones_like(batch.labels, dtype=torch.double))
        all_reduce_sum(sums), all_reduce_sum(counts)
        self.relationship.copy_(sums / counts.clamp(min=1)[:, None])

    def penalty(self, batch: Batch, features: Tensor) -> Tensor:
        """Of this batch."""
        logs = F.log_softmax(source_logits(self.net, features), 1)
        return -self.weight * (self.relationship[batch.labels] * logs).sum(1).mean()


class StochNorm(EndToEnd):
    """Stochastic normalization (Kou et al. 2020): no penalty; in training every BatchNorm of the base normalises each
    channel by the batch's statistics with probability `p`, else by the running ones, anew in every step.
    """

    def __init__(self, net: TaskNetwork, *, p: float = 0.5, **options: Any) -> None:
        super().__init__(net, **options)
        self.p = p
        self._kept: dict[nn.Module, Tensor] = {}
        norms = [module for module in net.base.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        if not norms:
            raise ConfigError(f"{type(net.base).__name__} has no BatchNorm for regularizer=stoch_norm")
        for norm in norms:  # hooks, so that layers of any kind of BatchNorm, and the names of weights, stay as they are
            norm.register_forward_pre_hook(self._by_running_statistics)
            norm.register_forward_hook(self._mix)

    def _by_running_statistics(self, norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if norm.training:
            norm.eval()
            # of copies: the batch changes the statistics themselves before the gradient is computed by them
            running = {name: value.clone() for name, value in norm.named_buffers()}
            self._kept[norm] = functional_call(norm, running, inputs)
            norm.train()

    def _mix(self, norm: nn.Module, inputs: tuple[Tensor, ...], by_batch: Tensor) -> Tensor:
        if not norm.training:
            return by_batch
        shape = [1, by_batch.shape[1], *[1] * (by_batch.ndim - 2)]
        return torch.where(shared(torch.rand(shape, device=by_batch.device)) < self.p, by_batch, self._kept.pop(norm))


def source_logits(net: TaskNetwork, features: Tensor) -> Tensor:
    """What the base's own classifier gives for features [B, D]: float32 [B, classes of the base]."""
    head = net.base.get_submodule(net.patch.head_name)
    return head(features if isinstance(head, nn.Linear) else features[:, :, None, None]).flatten(1).float()
