"""Offspring trained further with labels, after the search.

As in the authors' code: SGD at a constant learning rate, at most one epoch, the stitches alone or all weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from recombine.core.settings import to_dict
from recombine.core.types import Batch, Loader, Step
from recombine.engine.engine import Engine
from recombine.engine.method import Method, cross_entropy
from recombine.models import Model
from recombine.run.config import DictConfig, build
from recombine.run.run import Run
from recombine.stitch.ensemble import OutputEnsemble
from recombine.stitch.images import ImageSplits
from recombine.stitch.measuring import predict_network
from recombine.stitch.metrics import network_metrics
from recombine.stitch.offspring import export
from recombine.stitch.supernetwork import Supernetwork

__all__ = ["Branches", "RetrainedOffspring", "Retraining", "retrain"]


class RetrainedOffspring(NamedTuple):
    """An offspring with new weights, and its metrics with them."""

    model: Model
    """As `export(merged=False)` returns it."""
    metrics: dict[str, float]


class Branches(nn.Module):
    """An offspring whose inner network returns the logits of each output it has, one or two."""

    def __init__(self, model: Model, ensemble: OutputEnsemble | None = None) -> None:
        """`ensemble` of two outputs; by default the mean of their logits."""
        super().__init__()
        self.model, self.ensemble = model, ensemble or OutputEnsemble()

    def branch_logits(self, images: Tensor) -> tuple[Tensor, ...]:
        """uint8 [B, 3, H, W] -> logits [B, C, ...] of each output."""
        return self.model.net(self.model.preprocess(images))

    def forward(self, images: Tensor) -> Tensor:
        """The logits of the offspring."""
        outputs = self.branch_logits(images)
        return (outputs[0] if len(outputs) == 1 else self.ensemble(*outputs)).float()


class Retraining(Method):
    """Cross entropy of each output by itself: of an ensemble both branches learn the labels, as the authors do.

    Deviation: BatchNorm keeps its statistics; what the authors do with them is not known.
    """

    net: Branches

    def __init__(self, net: Branches, what: str) -> None:
        """`what` is trained: `stitches`, or `all` weights."""
        super().__init__(net)
        for name, parameter in net.named_parameters():
            parameter.requires_grad_((what == "all" and name != "ensemble.share") or ".stitches." in name)

    def train(self, mode: bool = True) -> Retraining:
        """Parameters train; every module stays in eval mode."""
        super().train(mode)
        self.net.eval()
        return self

    def forward(self, batch: Batch) -> Step:
        """The loss over all outputs."""
        logits = self.net.branch_logits(batch.images)
        loss = cross_entropy(torch.cat(logits).float(), torch.cat([batch.labels] * len(logits)))
        return Step(loss, {"loss": loss.detach()})


def retrain(
    net: Supernetwork,
    genotypes: np.ndarray,
    images: ImageSplits,
    loaders: Mapping[str, Loader],
    cfg: DictConfig,
    run: Run,
    calibration: Sequence[Tensor] = (),
) -> list[RetrainedOffspring | None]:
    """Train copies of offspring [n, L] and evaluate them again; None for those without a weight that is trained.

    `loaders`: the images of `search` and `test`; `calibration`: those of BatchNorm statistics, as in `export`.
    """
    if cfg.retrain.what == "none":
        return [None] * len(genotypes)
    train = images.training_loader(net.parents[0].model, cfg.retrain.batch_size, labelled=True)
    options = {**to_dict(cfg.engine), "epochs": 1, "max_steps": cfg.retrain.max_steps}
    retrained: list[RetrainedOffspring | None] = []
    for k, genotype in enumerate(genotypes):
        branches = Branches(export(net, genotype, merged=False, calibration=calibration), net.ensemble)
        method = Retraining(branches, cfg.retrain.what)
        if not _trainable(method.parameters()):
            retrained.append(None)
            continue
        optimizer, schedule = build(cfg.retrain.optimizer), build(cfg.retrain.schedule)
        Engine(options, run).fit(method, train, optimizer, schedule, name=f"retrain/{k}")
        search, test = (
            predict_network(branches, loaders[purpose], net.task, precision=cfg.engine.eval_precision)
            for purpose in ("search", "test")
        )
        retrained.append(RetrainedOffspring(branches.model, network_metrics(search, test, net.task)))
    return retrained


def _trainable(parameters: Iterable[nn.Parameter]) -> bool:
    return any(parameter.requires_grad for parameter in parameters)
