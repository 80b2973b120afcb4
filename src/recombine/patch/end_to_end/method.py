"""Network and patch trained together, from a trained or an untrained network: what Tables 5, 6, 12 and 13 compare."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recombine.core.types import Batch, Loader, Step
from recombine.engine.method import Method
from recombine.patch.patched import TaskNetwork

__all__ = ["EndToEnd"]


class EndToEnd(Method):
    """L = CE(y, t) + penalty. A subclass is a regularizer: it adds its penalty, here none.

    The base's own classifier does not train. `base_lr_scale` multiplies the learning rate of the base.
    """

    net: TaskNetwork

    def __init__(self, net: TaskNetwork, *, base_lr_scale: float = 1.0) -> None:
        super().__init__(net)
        self.base_lr_scale = base_lr_scale
        self.frozen = (f"net.base.{net.patch.head_name}",)

    def prepare(self, images: Loader) -> None:
        """What is learnt from the training images before training, each once and not augmented; default: nothing."""

    def loader(self, train: Loader) -> Loader:
        """The batches to train on; default: those of `train`."""
        return train

    def forward(self, batch: Batch) -> Step:
        """The loss of one batch."""
        features, logits = self.net.features_and_logits(batch.images)
        return self.step(logits, batch.labels, self.penalty(batch, features))

    def penalty(self, batch: Batch, features: Tensor) -> Tensor | None:
        """What is added to the cross entropy, 0-d; `features` [B, D] enter the classifier."""
        return None

    def step(self, logits: Tensor, labels: Tensor, penalty: Tensor | None) -> Step:
        """The whole loss, and what logs show."""
        loss = F.cross_entropy(logits, labels)
        with torch.no_grad():
            logs = {"loss": loss.detach(), "accuracy": (logits.argmax(1) == labels).float().mean() * 100}
        if penalty is None:
            return Step(loss, logs)
        return Step(loss + penalty, logs | {"penalty": penalty.detach()})

    def pretrained(self) -> list[nn.Module]:
        """The parts with the base's learning rate."""
        return [self.net.base]

    def parameter_groups(self) -> list[dict]:
        """What is new, then what was trained before, at `base_lr_scale` times the learning rate."""
        old = {id(value) for part in self.pretrained() for value in part.parameters()}
        training = [value for value in self.parameters() if value.requires_grad]
        new, known = [v for v in training if id(v) not in old], [v for v in training if id(v) in old]
        return [{"params": new}, {"params": known, "lr_scale": self.base_lr_scale}]
