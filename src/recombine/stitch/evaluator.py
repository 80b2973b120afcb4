"""Evaluation of offspring: many in one pass over the images, and in a search each network once."""

from __future__ import annotations

import logging
import math
import zlib
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recombine.core.distributed import all_reduce_sum, maximum
from recombine.core.errors import Interrupted
from recombine.core.files import append_records, read_records, write_records
from recombine.core.types import Loader
from recombine.engine.evaluate import autocast, evaluating, resolve
from recombine.models.freeze import digest
from recombine.run.run import Run
from recombine.stitch.pareto import front
from recombine.stitch.racing import Answers, Heat, NetworkScores, Rivals, in_stages
from recombine.stitch.recalibration import recalibrate
from recombine.stitch.search.space import Evaluations, phenotypes
from recombine.stitch.supernetwork import Supernetwork
from recombine.stitch.tasks import Classification

__all__ = ["NetworkScores", "OffspringEvaluator"]

log = logging.getLogger(__name__)
TOO_LARGE = NetworkScores(0.0, math.inf, math.inf, 0)
"""Of a network that is beyond the limits."""


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
        calibration: Sequence[Tensor] = (),
        racing_alpha: float = 0.0,
        max_cost: int | None = None,
        max_parameters: int | None = None,
    ) -> None:
        """`performance`: loss, or else the score of the networks' task is the first objective.

        `eval_batch_networks`: networks in one pass, which bounds the memory; `file`: keeps the memo.

        `calibration`: batches of images (uint8 [B, 3, H, W]) on which BatchNorms behind stitches estimate their
        statistics. `racing_alpha`: networks are dropped early as `Rivals` describes it; 0: all see all images.
        Offspring above `max_cost` multiply-adds or `max_parameters` are not run: their objectives are infinite.
        """
        self.limits = (max_cost or math.inf, max_parameters or math.inf)
        self.calibration = calibration
        self.net, self.run, self.precision = net, run, precision
        self.performance, self.eval_batch_networks, self.file = performance, eval_batch_networks, file
        with closing(loader.epoch(0)) as batches:
            images = [(net.preprocess.fit(batch.images).clone(), batch.labels.clone()) for batch in batches]
        self.samples = int(all_reduce_sum(torch.tensor(sum(len(labels) for _, labels in images))))
        differences = Classification().differences if performance == "loss" else net.task.differences
        self.rivals = Rivals(racing_alpha, differences) if racing_alpha else None
        self.stages = in_stages(images) if self.rivals else [images]
        """Batches of images and labels; after each stage but the last, networks may be dropped."""
        self.memo: dict[bytes, NetworkScores] = {}
        """By phenotype."""
        self.passes = 0
        if file is not None:
            self._read_memo(file, self._header(loader, racing_alpha))

    def _header(self, loader: Loader, racing_alpha: float) -> dict[str, Any]:
        """What the memo depends on."""
        net, precision, run = self.net, self.precision, self.run
        header: dict[str, Any] = {"format": 2, "network": digest(net), "data": loader.digest}
        header |= {"precision": resolve(precision, run.device)}
        header |= {"racing": [racing_alpha, self.performance]} if racing_alpha else {}
        header |= {"score": net.task.score} if net.task.pixels else {}
        if self.calibration:
            header["calibration"] = zlib.crc32(torch.cat(list(self.calibration)).cpu().numpy().tobytes())
        return header

    def __call__(self, genotypes: np.ndarray) -> Evaluations:
        """int8 [n, 2m + 1] -> objectives (both to be minimised), score and active genes of each."""
        active = np.stack([self.net.active(genotype) for genotype in genotypes])
        networks = phenotypes(genotypes, active)
        keys = [network.tobytes() for network in networks]
        fresh = {key: network for key, network in zip(keys, networks, strict=True) if key not in self.memo}
        self._evaluate([network for network in fresh.values() if self._within_limits(network)])
        scores = [self.memo.get(key, TOO_LARGE) for key in keys]
        accuracy = np.array([score.accuracy for score in scores])
        measured = np.array([score.images == self.samples for score in scores])
        objectives = np.array([score.objectives(self.performance) for score in scores])
        return Evaluations(objectives, accuracy, active, measured)

    def _within_limits(self, phenotype: np.ndarray) -> bool:
        """Whether a network may be run: the parents and their ensemble, which have no stitch, always may."""
        cost, parameters = self.limits
        if not phenotype[:-1].any():
            return True
        return self.net.cost(phenotype) <= cost and self.net.num_parameters(phenotype) <= parameters

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

    def _scores(self, genotypes: Sequence[np.ndarray], *, race: bool = True) -> list[NetworkScores]:
        """One pass over the images, each process over its part; the host waits for the device once a stage."""
        if not genotypes:
            return []
        plan, answers = self.net.plan(genotypes), Answers(self.net.task)
        heat = Heat(self.rivals, self.performance, genotypes, list(map(self.net.cost, genotypes)), race)
        with evaluating(self.net):
            with autocast(self.precision, self.run.device):
                instead = recalibrate(self.net, plan, self.calibration).layers if self.calibration else {}
            for stage in self.stages:
                for images, labels in stage:
                    with autocast(self.precision, self.run.device):
                        answers.add(torch.stack(self.net.logits(plan, images, instead)), labels)
                if stage is self.stages[-1] or not (dropped := heat.drop(answers)).any():
                    continue
                answers.keep(~dropped)
                plan = plan.keep(np.flatnonzero(~dropped).tolist())
                if not len(heat.left):
                    break
        return heat.finish(answers)

    def _read_memo(self, file: Path, header: dict) -> None:
        """Read the memo of a file if it was made with this supernetwork and these images, else start the file anew."""
        records, damaged = read_records(file)
        if damaged:
            log.warning("%s: %d lines are damaged; their networks are evaluated again", file, damaged)
        known = _whole_passes(records[1:]) if records[:1] == [header] else []
        for record in known:
            genotype = np.zeros_like(self.net.genotype)
            genotype[record["on"]], genotype[-1] = 1, record["output"]
            loss = math.inf if record["loss"] is None else record["loss"]
            scores = NetworkScores(record["accuracy"], loss, record["cost"], record["images"])
            self.memo[genotype.tobytes()] = scores
        if self.run.main:  # a line that was cut off must not be continued
            write_records(file, [header, *known])
        self.passes = known[-1]["pass"] + 1 if known else 0
        if self.rivals:  # what they answered to every image is not in the file
            measured = [key for key, score in self.memo.items() if score.images == self.samples]
            objectives = [self.memo[key].objectives(self.performance) for key in measured]
            best = front(np.reshape(objectives, (-1, 2)))
            self._scores([np.frombuffer(measured[k], np.int8) for k in best], race=False)
        if self.run.main and known:
            log.info("%s networks were evaluated before: %s", f"{len(known):,}", file)

    def _append(self, scores: dict[bytes, NetworkScores]) -> None:
        number, self.passes = self.passes, self.passes + 1
        if self.file is None or not self.run.main:
            return
        records = []
        for key, score in scores.items():
            genotype = np.frombuffer(key, np.int8)
            genes = {"on": np.flatnonzero(genotype[:-1]).tolist(), "output": int(genotype[-1])}
            loss = score.loss if math.isfinite(score.loss) else None
            of_pass = {"pass": number, "networks": len(scores)}
            records.append({**genes, **score._asdict(), "loss": loss, **of_pass})
        append_records(self.file, records)


def _whole_passes(records: list[dict]) -> list[dict]:
    """Records before the first pass of which some are lost: it is repeated as a whole, with the rivals it had."""
    sizes = Counter(record["pass"] for record in records)
    broken = [record["pass"] for record in records if sizes[record["pass"]] != record["networks"]]
    missing = [number for number in range(len(sizes)) if number not in sizes]
    end = min([*broken, *missing], default=len(sizes))
    return [record for record in records if record["pass"] < end]
