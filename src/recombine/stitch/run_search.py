"""The search of a run: what it asks for, how it is going, and the front of everything it has seen."""

from __future__ import annotations

import time

import numpy as np

from recombine.engine.logging import ProgressBar
from recombine.run.config import DictConfig, build
from recombine.run.run import Run
from recombine.stitch.evaluator import Evaluator
from recombine.stitch.pareto import front, hypervolume
from recombine.stitch.search.archive import Archive
from recombine.stitch.search.space import Budget, Evaluated, Space
from recombine.stitch.search.sweep import references, single_stitches
from recombine.stitch.supernetwork import Supernetwork

__all__ = ["Watch", "budget", "search"]

LINES = 10
"""Log lines of a search where there is no terminal."""


def budget(cfg: DictConfig) -> Budget:
    """How many networks may be asked for."""
    return Budget(cfg.budget, cfg.budget_unit)


def search(cfg: DictConfig, run: Run, net: Supernetwork, evaluator: Evaluator) -> tuple[np.ndarray, Watch]:
    """Run the configured search; the front of all it has asked for, genotypes [f, L], best performance first."""
    space = Space(net.alphabet, cfg.expected_stitches)
    algorithm = build(cfg.search, space=space, budget=budget(cfg), seed=run.seed)
    watch = Watch(run, evaluator, cfg.budget)
    with watch.display:
        algorithm.run(watch.ask, watch)
    seen = np.stack(list(watch.seen.values()))
    return seen[front(evaluator(seen).objectives)], watch


class Watch:
    """Stands between a search and its evaluator: progress, the curve of the search, everything it has seen."""

    def __init__(self, run: Run, evaluator: Evaluator, total: int) -> None:
        self.run, self.evaluator, self.total = run, evaluator, total
        self.display = ProgressBar("search", total, run.main)
        self.seen: dict[bytes, np.ndarray] = {}
        """Phenotypes in the order in which they were first asked for."""
        self.requests, self.lines, self.started = 0, 0, time.perf_counter()
        self.corner = evaluator(references(len(evaluator.net.genotype))).objectives.max(0)
        """The worst of both parents and their ensemble in both objectives: where hypervolumes end."""
        best = -1.0 if evaluator.performance == "accuracy" else 0.0
        self.box = float((self.corner[0] - best) * self.corner[1])
        """The largest hypervolume there could be."""
        self.curve: dict[str, list[float]] = {}

    def ask(self, genotypes: np.ndarray) -> Evaluated:
        """Evaluate, and note what was asked."""
        found = self.evaluator(genotypes)
        for phenotype in np.where(found.active, genotypes, 0).astype(np.int8):
            self.seen.setdefault(phenotype.tobytes(), phenotype)
        self.requests += len(genotypes)
        return found

    def __call__(self, archive: Archive, spent: Budget) -> None:
        """After each batch: add a point to the curve, log it, move the bar."""
        members = archive.members
        switches, active = members.genotypes[:, :-1] > 0, members.active[:, :-1]
        empty = not len(archive)
        record = {
            "requests": spent.requests,
            "evaluations": len(self.seen),
            "front": len(archive),
            "hypervolume": 0.0 if empty else 100 * hypervolume(members.objectives, self.corner) / self.box,
            "accuracy": 0.0 if empty else 100 * float(members.accuracy.max()),
            "stitches": 0.0 if empty else float(np.median(switches.sum(1))),
            "active_stitches": 0.0 if empty else float(np.median((switches & active).sum(1))),
        }
        for key, value in record.items():
            self.curve.setdefault(key, []).append(value)
        self.run.tracker.log(record, step=spent.requests, prefix="search/")
        self.display.advance(self.total - max(0, spent.left))
        if spent.requests * LINES // self.total > self.lines:
            self.lines = spent.requests * LINES // self.total
            self.display.line(record)

    def single_stitches(self) -> dict[str, list[float]]:
        """Percent accuracy of all networks with one stitch on the search's images, if it asked for them all (a sweep).

        Four families of m networks, each in the order of the pairs.
        """
        asked = single_stitches(len(self.evaluator.net.genotype))
        if any(self.evaluator.net.phenotype(genotype).tobytes() not in self.seen for genotype in asked):
            return {}
        return {"single_stitch_accuracy": (100 * self.evaluator(asked).accuracy).tolist()}

    def totals(self) -> dict[str, float]:
        """What the search cost."""
        unique = len(self.seen)
        return {
            "requests": float(self.requests),
            "evaluations": float(unique),
            "answered": 100 * (1 - unique / self.requests),
            "search_seconds": time.perf_counter() - self.started,
        }
