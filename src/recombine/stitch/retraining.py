"""Offspring trained further with labels (section 12.5): what the search found is a start, not an end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recombine.core.types import Batch, Step
from recombine.engine.engine import Engine
from recombine.engine.evaluate import predict
from recombine.engine.method import Method
from recombine.models import Model
from recombine.run.config import build, plain
from recombine.stitch.metrics import network_measures
from recombine.stitch.offspring import export
from recombine.stitch.supernetwork import Supernetwork
from recombine.stitch.workbench import Workbench

__all__ = ["Branches", "Retrained", "Retraining", "retrained"]


class Retrained(NamedTuple):
    """An offspring with its new weights, and what it scores with them."""

    model: Model
    """As `export(merged=False)` gives it."""
    metrics: dict[str, float]


class Branches(nn.Module):
    """An offspring whose inner network gives the logits of each output it has, one or two."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def each(self, images: Tensor) -> tuple[Tensor, ...]:
        """uint8 [B, 3, H, W] -> logits [B, C] of each output."""
        return self.model.net(self.model.preprocess(images))

    def forward(self, images: Tensor) -> Tensor:
        """Their mean, as the offspring says it."""
        outputs = self.each(images)
        return (sum(outputs) / len(outputs)).float()


class Retraining(Method):
    """Cross entropy of each output by itself: of an ensemble both branches learn the labels, as the authors do.

    Deviation: BatchNorm keeps its statistics; what the authors do with them is not known.
    """

    def __init__(self, net: Branches, what: str) -> None:
        """`what` trains: stitches, or all weights."""
        super().__init__(net)
        for name, parameter in net.named_parameters():
            parameter.requires_grad_(what == "all" or ".stitches." in name)

    def train(self, mode: bool = True) -> Retraining:
        """Parameters train; every module stays in eval mode."""
        super().train(mode)
        self.net.eval()
        return self

    def forward(self, batch: Batch) -> Step:
        """The loss over all outputs."""
        logits = self.net.each(batch.images)
        loss = F.cross_entropy(torch.cat(logits).float(), batch.labels.repeat(len(logits)))
        return Step(loss, {"loss": loss.detach()})


def retrained(bench: Workbench, net: Supernetwork, genotypes: Sequence[np.ndarray]) -> list[Retrained | None]:
    """Train copies of some offspring and measure them again; None for those that have nothing that is to train."""
    if bench.cfg.retrain.what == "none":
        return [None] * len(genotypes)
    return [_retrained(bench, net, genotype, f"retrain/{k}") for k, genotype in enumerate(genotypes)]


def _retrained(bench: Workbench, net: Supernetwork, genotype: np.ndarray, name: str) -> Retrained | None:
    cfg = bench.cfg.retrain
    branches = Branches(export(net, genotype, merged=False))
    method = Retraining(branches, cfg.what)
    if not any(parameter.requires_grad for parameter in method.parameters()):
        return None
    engine = Engine({**plain(bench.cfg.engine), "epochs": 1, "max_steps": cfg.max_steps}, bench.training_run)
    loader = bench.training_loader(cfg.batch_size, labelled=True)
    engine.fit(method, loader, build(cfg.optimizer), build(cfg.schedule), name=name)
    precision = bench.cfg.engine.precision
    said = (predict(branches, bench.loader(purpose), precision=precision) for purpose in ("search", "test"))
    return Retrained(branches.model, network_measures(*said))
