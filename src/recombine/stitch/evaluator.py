"""Evaluation of offspring: many in one pass over the images, and in a search each network once."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recombine.core.distributed import all_reduce_sum, maximum
from recombine.core.errors import Interrupted
from recombine.core.files import append_records, read_records, write_records
from recombine.core.types import Loader
from recombine.engine.evaluate import Predictions, autocast, evaluating, predict, resolve
from recombine.models.freeze import digest
from recombine.run.run import Run
from recombine.stitch.search.space import Evaluations
from recombine.stitch.supernetwork import Supernetwork

__all__ = ["NetworkScores", "OffspringEvaluator", "predict_networks"]

log = logging.getLogger(__name__)


class NetworkScores(NamedTuple):
    """Results of one network on the search images."""

    accuracy: float
    """Fraction of correct predictions, 0..1; 0 if the logits are not finite."""
    loss: float
    """Mean cross entropy."""
    cost: int
    """Multiply-adds of one image."""


class OffspringEvaluator:
    """Genotypes in, objectives out; a network that was evaluated before, under any genotype, is not run again.

    The images stay on the device. Scores are appended to a file as they come: an interrupted search is repeated with
    that file, requests the same networks in the same order, and finds them there.
    """

    def __init__(
        self,
        net: Supernetwork,
        loader: Loader,
        run: Run,
        *,
        precision: str,
        performance: str = "accuracy",
        eval_batch_networks: int = 32,
        file: Path | None = None,
    ) -> None:
        """`eval_batch_networks`: networks in one pass, which bounds the memory; `file`: keeps the memo."""
        self.net, self.run, self.precision = net, run, precision
        self.performance, self.eval_batch_networks, self.file = performance, eval_batch_networks, file
        with closing(loader.epoch(0)) as batches:
            self.batches = [(net.preprocess.fit(batch.images).clone(), batch.labels.clone()) for batch in batches]
        self.samples = int(all_reduce_sum(torch.tensor(sum(len(labels) for _, labels in self.batches))))
        self.memo: dict[bytes, NetworkScores] = {}
        """By phenotype."""
        if file is not None:
            identity = {"network": digest(net), "data": loader.digest, "precision": resolve(precision, run.device)}
            self._read_memo(file, {"format": 1, **identity})

    def __call__(self, genotypes: np.ndarray) -> Evaluations:
        """int8 [n, 2m + 1] -> objectives (both to be minimised), accuracy and active genes of each."""
        active = np.stack([self.net.active(genotype) for genotype in genotypes])
        phenotypes = np.where(active, genotypes, 0).astype(np.int8)
        keys = [phenotype.tobytes() for phenotype in phenotypes]
        fresh = {key: phenotype for key, phenotype in zip(keys, phenotypes, strict=True) if key not in self.memo}
        self._evaluate(list(fresh.values()))
        scores = [self.memo[key] for key in keys]
        accuracy = np.array([score.accuracy for score in scores])
        performance = -accuracy if self.performance == "accuracy" else np.array([score.loss for score in scores])
        cost = np.array([float(score.cost) for score in scores])
        return Evaluations(np.stack([performance, cost], 1), accuracy, active)

    def _evaluate(self, phenotypes: Sequence[np.ndarray]) -> None:
        """Evaluate new networks; raises Interrupted between two passes over the images."""
        ordered = sorted(phenotypes, key=bytes)  # neighbours in this order have a common prefix, and so share layers
        for start in range(0, len(ordered), self.eval_batch_networks):
            (signal,) = maximum(self.run.stop_requested() or 0)
            if signal:
                raise Interrupted(signal)
            group = ordered[start : start + self.eval_batch_networks]
            scores = dict(zip((phenotype.tobytes() for phenotype in group), self._scores(group), strict=True))
            self.memo |= scores
            self._append(scores)

    def _scores(self, genotypes: Sequence[np.ndarray]) -> list[NetworkScores]:
        """One pass over all images, each process over its part; the host waits for the device once."""
        plan, device = self.net.plan(genotypes), self.run.device
        correct = torch.zeros(len(genotypes), dtype=torch.float64, device=device)
        loss = torch.zeros_like(correct)
        with evaluating(self.net):
            for images, labels in self.batches:
                with autocast(self.precision, device):
                    logits = torch.stack(self.net.logits(plan, images))
                correct += (logits.argmax(2) == labels).sum(1)
                loss += self._cross_entropy(logits, labels)
        values = all_reduce_sum(torch.stack([correct, loss]).cpu()) / self.samples
        costs = [self.net.cost(genotype) for genotype in genotypes]
        return [
            NetworkScores(accuracy, mean, cost) if math.isfinite(mean) else NetworkScores(0.0, math.inf, cost)
            for accuracy, mean, cost in zip(*values.tolist(), costs, strict=True)
        ]

    @staticmethod
    def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
        """[G, B, C] and [B] -> sums over the batch [G]."""
        return F.cross_entropy(logits.movedim(2, 1), labels.expand(len(logits), -1), reduction="none").sum(1).double()

    def _read_memo(self, file: Path, header: dict) -> None:
        """Read the memo of a file if it was made with this supernetwork and these images, else start the file anew."""
        records, damaged = read_records(file)
        if damaged:
            log.warning("%s: %d lines are damaged; their networks are evaluated again", file, damaged)
        known = records[1:] if records[:1] == [header] else []
        for record in known:
            genotype = np.zeros_like(self.net.genotype)
            genotype[record["on"]], genotype[-1] = 1, record["output"]
            loss = math.inf if record["loss"] is None else record["loss"]
            self.memo[genotype.tobytes()] = NetworkScores(record["accuracy"], loss, record["cost"])
        if self.run.main:  # a line that was cut off must not be continued
            write_records(file, [header, *known])
            if known:
                log.info("%s networks were evaluated before: %s", f"{len(known):,}", file)

    def _append(self, scores: dict[bytes, NetworkScores]) -> None:
        if self.file is None or not self.run.main:
            return
        records = []
        for key, score in scores.items():
            genotype = np.frombuffer(key, np.int8)
            genes = {"on": np.flatnonzero(genotype[:-1]).tolist(), "output": int(genotype[-1])}
            loss = score.loss if math.isfinite(score.loss) else None
            records.append({**genes, **score._asdict(), "loss": loss})
        append_records(self.file, records)


def predict_networks(
    net: Supernetwork, genotypes: np.ndarray, loader: Loader, *, precision: str, eval_batch_networks: int
) -> Iterator[Predictions]:
    """The predictions of the network of each genotype [n, L], `eval_batch_networks` of them in one pass."""
    for start in range(0, len(genotypes), eval_batch_networks):
        group = genotypes[start : start + eval_batch_networks]
        found = predict(_NetworkBatch(net, group), loader, precision=precision)
        for logits in found.logits.unflatten(1, (len(group), -1)).unbind(1):
            yield found._replace(logits=logits)


class _NetworkBatch(nn.Module):
    """Logits [B, G C] of several genotypes."""

    def __init__(self, net: Supernetwork, genotypes: np.ndarray) -> None:
        super().__init__()
        self.net, self.plan = net, net.plan(genotypes)

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat(self.net.logits(self.plan, images), 1)
