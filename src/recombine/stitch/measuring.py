"""What networks of a supernetwork answer to images, and their metrics on those of the search and of the test."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from recombine.core.types import Loader
from recombine.engine.evaluate import autocast, evaluating, run_over
from recombine.run.config import DictConfig
from recombine.stitch.comparison import MeasuredNetworks
from recombine.stitch.metrics import NetworkAnswers, network_metrics
from recombine.stitch.recalibration import recalibrate
from recombine.stitch.search.population import single_stitches
from recombine.stitch.search.space import ENSEMBLE
from recombine.stitch.supernetwork import Supernetwork
from recombine.stitch.tasks import Task

__all__ = ["evaluate_networks", "hybrid_metrics", "predict_network", "predict_networks"]


def predict_network(net: nn.Module, loader: Loader, task: Task, *, precision: str) -> NetworkAnswers:
    """The answers of a network that gives logits [B, C, ...]."""
    return next(_answers(net, 1, loader, task, precision))


def predict_networks(
    net: Supernetwork,
    genotypes: np.ndarray,
    loader: Loader,
    *,
    precision: str,
    eval_batch_networks: int,
    calibration: Sequence[Tensor] = (),
) -> Iterator[NetworkAnswers]:
    """The answers of the network of each genotype [n, L], `eval_batch_networks` of them in one pass."""
    for start in range(0, len(genotypes), eval_batch_networks):
        group = genotypes[start : start + eval_batch_networks]
        batch = _NetworkBatch(net, group, calibration, precision)
        yield from _answers(batch, len(group), loader, net.task, precision)


def _answers(net: nn.Module, networks: int, loader: Loader, task: Task, precision: str) -> Iterator[NetworkAnswers]:
    """Of a module that gives logits [B, G C, ...] of G networks; only what is needed of them is kept."""

    def read(logits: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        if not len(labels):
            return logits, labels, logits
        each = logits.unflatten(1, (networks, -1)).movedim(1, 0)
        kept, kept_labels = task.sample(each, labels)
        return kept.movedim(0, 1), kept_labels, task.count(each, labels).movedim(0, 1)

    _, _, logits, labels, counts = run_over(net, loader, read, precision)
    known = labels >= 0
    for k in range(networks):
        yield NetworkAnswers(logits[:, k][known], labels[known], counts[:, k])


class _NetworkBatch(nn.Module):
    """Logits [B, G C, ...] of several genotypes."""

    def __init__(self, net: Supernetwork, genotypes: np.ndarray, calibration: Sequence[Tensor], precision: str) -> None:
        super().__init__()
        self.net, self.plan, self.instead = net, net.plan(genotypes), {}
        if calibration:
            with evaluating(net), autocast(precision, calibration[0].device):
                self.instead = recalibrate(net, self.plan, calibration).layers

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat(self.net.logits(self.plan, images, self.instead), 1)


def evaluate_networks(
    net: Supernetwork,
    genotypes: np.ndarray,
    loaders: Mapping[str, Loader],
    cfg: DictConfig,
    calibration: Sequence[Tensor] = (),
) -> MeasuredNetworks:
    """Genes, cost, score and calibration of networks, and their answers, on both sets of images."""
    options = {**_options(cfg), "calibration": calibration}
    search, test = (predict_networks(net, genotypes, loaders[name], **options) for name in ("search", "test"))
    rows, answers = [], []
    for genotype, on_search, on_test in zip(genotypes, search, test, strict=True):
        phenotype = net.phenotype(genotype)
        genes = {"on": np.flatnonzero(phenotype[:-1]).tolist(), "output": int(phenotype[-1])}
        rows.append(genes | {"cost": net.cost(genotype)} | network_metrics(on_search, on_test, net.task))
        answers.append([found.counts.numpy() for found in (on_search, on_test)])
    counts = {
        purpose: np.stack(given) for purpose, given in zip(("search", "test"), zip(*answers, strict=True), strict=True)
    }
    return MeasuredNetworks({key: [row[key] for row in rows] for key in rows[0]}, counts, net.task)


def hybrid_metrics(
    net: Supernetwork, loader: Loader, cfg: DictConfig, calibration: Sequence[Tensor]
) -> dict[str, float]:
    """Mean and worst score (percent) on the test images of the 2m networks that pass from one parent to the other.

    They have one output and one stitch: A's features below it and B's layers above, or the other way.
    """
    genotypes = [genotype for genotype in single_stitches(len(net.genotype)) if genotype[-1] != ENSEMBLE]
    found = predict_networks(net, np.stack(genotypes), loader, **_options(cfg), calibration=calibration)
    task = net.task
    scores = [100 * float(task.value(one.counts.double().sum(0), len(one.counts))) for one in found]
    return {f"hybrid_{task.score}": float(np.mean(scores)), f"hybrid_{task.score}_worst": min(scores)}


def _options(cfg: DictConfig) -> dict[str, Any]:
    return {"precision": cfg.engine.eval_precision, "eval_batch_networks": cfg.eval_batch_networks}
