"""Clones of several sources were never trained against each other: one scale and one bias for each."""

from __future__ import annotations

from collections.abc import Sequence

from torch.nn import functional as F

from recombine.core.types import Batch, Loader, Step
from recombine.data.mixed import LabelOffsetLoader, MixedLoader, shares
from recombine.engine.method import Method
from recombine.models import Model
from recombine.pnc.clone.cloned_network import ClonedNetwork
from recombine.pnc.data import CloneData, first_outputs, repeat_for_steps
from recombine.pnc.trainer import CloneTrainer

__all__ = ["Calibration", "calibrate"]

LEARNING_RATE = 0.02
"""Of two numbers a clone, which start at 1 and 0; ours."""


class Calibration(Method):
    """Cross entropy of a cloned network of which nothing trains but the scale and bias of each clone's logits."""

    def __init__(self, net: ClonedNetwork, first: int) -> None:
        """Outputs from `first` on are compared: 0 for all, or where the cloned classes begin."""
        super().__init__(net)
        parts = [f"net.clones.{name}.{part}" for name in net.clones for part in ("module", "adapter", "head")]
        self.frozen, self.first = ("net.target", *parts), first
        self.learned = [value for clone in net.clones.values() for value in (clone.scale, clone.bias)]
        for value in self.learned:
            value.requires_grad_(True)

    def parameter_groups(self) -> list[dict]:
        """Scales and biases, at a rate of their own."""
        return [{"params": self.learned, "lr": LEARNING_RATE, "weight_decay": 0.0}]

    def forward(self, batch: Batch) -> Step:
        """Images of all classes that are compared."""
        logits = self.net(batch.images)[:, self.first :]
        loss = F.cross_entropy(logits, batch.labels - self.first)
        return Step(loss, {"loss": loss.detach()})


def calibrate(
    net: ClonedNetwork,
    target: Model,
    pairs: Sequence[CloneData],
    trainer: CloneTrainer,
    epochs: float,
    min_steps: int,
    name: str = "calibrate",
) -> None:
    """Learn scales and biases on the images of all sources' clones and, if these may be used, the target's own.

    `epochs` of them, at least `min_steps` updates. Ours: without the target's own images the cloned classes are
    compared among themselves, as they would else gain on the old ones everywhere.
    """
    first = 0 if pairs[0].use_target_data else pairs[0].target.classes
    loader = repeat_for_steps(_joint_loader(pairs, target, trainer.batch_size), epochs, min_steps)
    trainer.fit(Calibration(net.to(trainer.run.device), first), loader, name, epochs)
    net.requires_grad_(False)


def _joint_loader(pairs: Sequence[CloneData], target: Model, batch_size: int) -> Loader:
    parts = [(pair.cloned, offset) for pair, offset in zip(pairs, first_outputs(pairs), strict=True)]
    if pairs[0].use_target_data:
        parts.insert(0, (pairs[0].target, 0))
    indices = [pairs[0].split(data, "train") for data, _ in parts]
    sizes, world = [len(each) for each in indices], pairs[0].world
    counts = shares(sizes, min(batch_size, sum(sizes) // world * world), world)
    options = {"train": True, "size": target.canvas, "augment": False}
    loaders = [
        LabelOffsetLoader(data.loader("train", count, indices=each, **options), offset)
        for (data, offset), each, count in zip(parts, indices, counts, strict=True)
    ]
    return MixedLoader(loaders, target.preprocess.fit)
