"""Method: the one thing a paper has to supply to the training loop."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from recombine.core.distributed import divisor
from recombine.core.labels import IGNORE
from recombine.core.types import Batch, Step

__all__ = ["Method", "Supervised", "accuracy", "cross_entropy", "keep_statistics"]


class Method(nn.Module):
    """A loss with its networks; it knows which parts train, which are frozen and what is published.

    Sub-modules named in `frozen` stay in eval mode without gradients (parameters and BatchNorm statistics are
    bit-identical afterwards) and take no place in a checkpoint. Build them before `fit`, never from resumed weights.
    """

    frozen: tuple[str, ...] = ()

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, batch: Batch) -> Step:
        """The loss of one batch (`batch.images` uint8 [B, 3, H, W])."""
        raise TypeError(f"{type(self).__name__} defines no forward(batch)")

    def train(self, mode: bool = True) -> Method:
        """Switch to training, but keep the frozen parts in eval mode."""
        super().train(mode)
        for name in self.frozen:
            self.get_submodule(name).eval().requires_grad_(False)
        return self

    def trained_state(self) -> dict[str, Tensor]:
        """The state dict without the frozen parts: what a checkpoint holds."""
        prefixes = tuple(f"{name}." for name in self.frozen)
        return {key: value for key, value in self.state_dict().items() if not key.startswith(prefixes)}

    def parameter_groups(self) -> list[dict]:
        """Trainable parameters in optimizer groups; default: one group, so weight decay is on all as in the papers.

        A group's `lr_scale` multiplies the optimizer's learning rate; what logs show is that of the first group.
        """
        trainable = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return [{"params": trainable}] if trainable else []

    def without_gradient(self, trained: Iterable[nn.Parameter]) -> list[str]:
        """Names of the `trained` parameters that the last backward pass did not reach."""
        known = {id(value) for value in trained}
        return [k for k, v in self.named_parameters() if id(v) in known and v.requires_grad and v.grad is None]

    def after_update(self, step: int) -> None:
        """Called after each optimizer step (slow weights, mask schedules); `step` counts from 0."""

    def on_epoch(self, epoch: int) -> None:
        """Called before the first batch of each epoch, also when resuming inside it."""


class Supervised(Method):
    """Cross entropy on the labels, of images or of pixels; where objects have boxes, the losses of the detector."""

    def __init__(self, net: nn.Module, label_smoothing: float = 0.0, batchnorm: str = "adapt") -> None:
        """`batchnorm` adapt or keep: whether running statistics follow the data."""
        super().__init__(net)
        self.label_smoothing, self.batchnorm = label_smoothing, batchnorm

    def train(self, mode: bool = True) -> Supervised:
        """Switch to training; with `batchnorm` keep, the running statistics stay."""
        super().train(mode)
        if self.batchnorm == "keep":
            keep_statistics(self)
        return self

    def forward(self, batch: Batch) -> Step:
        """Mean cross entropy and the percentage of correct predictions; or a detector's losses and their sum."""
        if batch.labels.is_floating_point():
            losses = self.net.losses(batch.images, batch.labels)  # type: ignore[operator]
            loss = torch.stack(list(losses.values())).sum()
            return Step(loss, {"loss": loss.detach()} | {key: value.detach() for key, value in losses.items()})
        logits = self.net(batch.images).float()
        loss = cross_entropy(logits, batch.labels, self.label_smoothing)
        with torch.no_grad():
            return Step(loss, {"loss": loss.detach(), "accuracy": accuracy(logits, batch.labels)})


def keep_statistics(module: nn.Module) -> None:
    """Let every BatchNorm in `module` normalise by its running statistics, and leave them as they are.

    On few images, or images unlike those of its training, a network with the statistics of the batch is another one:
    what its classifier was fitted to is gone at the first step.
    """
    for part in module.modules():
        if isinstance(part, _BatchNorm):
            part.eval()


def cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Mean over images, logits [B, C], or over all pixels that have a class, logits [B, C, H, W]."""
    if labels.ndim == 1:
        return F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    total = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum", label_smoothing=label_smoothing)
    return total / divisor((labels != IGNORE).sum())  # a batch may show nothing that has a class


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Percent of images, or of pixels that have a class."""
    hits = logits.argmax(1) == labels
    if labels.ndim == 1:
        return hits.float().mean() * 100
    return 100 * hits.sum() / divisor((labels != IGNORE).sum())
