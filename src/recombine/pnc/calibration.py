"""Clones of several sources were never trained against each other: one scale and one bias for each (section 11.2)."""

from __future__ import annotations

from collections.abc import Sequence

from torch.nn import functional as F

from recombine.core.types import Batch, Loader, Step
from recombine.data.mixed import LabelOffsetLoader, MixedLoader, shares
from recombine.engine.engine import Engine
from recombine.engine.method import Method
from recombine.pnc.clone.network import ClonedNetwork
from recombine.pnc.workbench import Workbench
from recombine.run.config import build, plain

__all__ = ["Calibration", "calibrate", "offsets"]

RATE = 0.02
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
        return [{"params": self.learned, "lr": RATE, "weight_decay": 0.0}]

    def forward(self, batch: Batch) -> Step:
        """Images of all classes that are compared."""
        logits = self.net(batch.images)[:, self.first :]
        loss = F.cross_entropy(logits, batch.labels - self.first)
        return Step(loss, {"loss": loss.detach()})


def offsets(benches: Sequence[Workbench]) -> list[int]:
    """Where the classes of each source begin among the outputs of the network with all clones."""
    counts = [benches[0].original.classes, *(len(bench.names) for bench in benches)]
    return [sum(counts[: k + 1]) for k in range(len(benches))]


def calibrate(benches: Sequence[Workbench], cloned: ClonedNetwork, epochs: float, min_steps: int) -> None:
    """Learn scales and biases on the images of all sources' clones and, if these may be used, the target's own.

    `epochs` of them, at least `min_steps` updates. Ours: without the target's own images the cloned classes are
    compared among themselves, as they would else gain on the old ones everywhere.
    """
    first = benches[0]
    start = 0 if first.cfg.use_target_data else first.original.classes
    loader = first.long_enough(_union(benches), epochs, min_steps)
    engine = Engine({**plain(first.cfg.engine), "epochs": epochs}, first.run)
    settings = build(first.cfg.optimizer), build(first.cfg.schedule)
    engine.fit(Calibration(cloned.to(first.run.device), start), loader, *settings, name="calibrate")
    cloned.requires_grad_(False)


def _union(benches: Sequence[Workbench]) -> Loader:
    first = benches[0]
    parts = [(bench.cloned, offset) for bench, offset in zip(benches, offsets(benches), strict=True)]
    if first.cfg.use_target_data:
        parts.insert(0, (first.original, 0))
    indices = [first.part(data, "train") for data, _ in parts]
    sizes, world = [len(each) for each in indices], first.run.world
    counts = shares(sizes, min(first.cfg.batch_size, sum(sizes) // world * world), world)
    options = {"train": True, "size": first.target.canvas, "augment": False}
    loaders = [
        LabelOffsetLoader(data.loader("train", count, indices=each, **options), offset)
        for (data, offset), each, count in zip(parts, indices, counts, strict=True)
    ]
    return MixedLoader(loaders, first.target.preprocess.fit)
