"""The search of a run: its requests, its progress, and the front of all networks that it requested."""

from __future__ import annotations

import time

import numpy as np

from recombine.engine.logging import ProgressBar
from recombine.run.config import DictConfig, build
from recombine.run.run import Run
from recombine.stitch.evaluator import OffspringEvaluator
from recombine.stitch.pareto import front, hypervolume
from recombine.stitch.search.archive import Archive
from recombine.stitch.search.population import single_stitches
from recombine.stitch.search.space import Budget, Evaluations, Space, phenotypes, references
from recombine.stitch.supernetwork import Supernetwork

__all__ = ["SearchMonitor", "search"]

LOG_LINES = 10
"""Log lines of a search where there is no terminal."""


def search(
    cfg: DictConfig, run: Run, net: Supernetwork, evaluator: OffspringEvaluator
) -> tuple[np.ndarray, SearchMonitor]:
    """Run the configured search; the front of all requests, genotypes [f, L], best performance first."""
    space = Space(net.alphabet, cfg.expected_stitches, net.coarse)
    algorithm = build(cfg.search, space=space, budget=Budget(cfg.budget, cfg.budget_unit), seed=run.seed)
    monitor = SearchMonitor(run, evaluator, cfg.budget)
    with monitor.display:
        algorithm.run(monitor.evaluate, monitor.log_generation)
    seen = np.stack(list(monitor.seen.values()))
    found = evaluator(seen)
    measured = np.flatnonzero(found.measured)
    return seen[measured[front(found.objectives[measured])]], monitor


class SearchMonitor:
    """Records a search at its evaluator: the requests, the curve over time, and the progress on the console."""

    def __init__(self, run: Run, evaluator: OffspringEvaluator, total: int) -> None:
        self.run, self.evaluator, self.total = run, evaluator, total
        self.display = ProgressBar("search", total, run.main)
        self.seen: dict[bytes, np.ndarray] = {}
        """Phenotypes in the order in which they were first requested."""
        self.requests, self.log_lines, self.started = 0, 0, time.perf_counter()
        self.corner = evaluator(references(len(evaluator.net.genotype))).objectives.max(0)
        """The worst of both parents and their ensemble in both objectives: the reference point of hypervolumes."""
        best = 0.0 if evaluator.performance == "loss" else -1.0
        self.box = float((self.corner[0] - best) * self.corner[1])
        """The largest hypervolume there could be; 0 where parents and ensemble all make no mistake."""
        self.curve: dict[str, list[float]] = {}

    def evaluate(self, genotypes: np.ndarray) -> Evaluations:
        """Evaluate genotypes int8 [n, L] and record the requests."""
        found = self.evaluator(genotypes)
        run = np.isfinite(found.objectives[:, 1])  # others are beyond the limits
        for phenotype in phenotypes(genotypes, found.active)[run]:
            self.seen.setdefault(phenotype.tobytes(), phenotype)
        self.requests += len(genotypes)
        return found

    def _hypervolume(self, objectives: np.ndarray) -> float:
        """Percent of the largest there could be; 0 where nothing could be better than the references."""
        return 100 * hypervolume(objectives, self.corner) / self.box if self.box else 0.0

    def log_generation(self, archive: Archive, budget: Budget) -> None:
        """After each batch: add a point to the curve, log it, move the bar."""
        members = archive.members
        switches, active = members.genotypes[:, :-1] > 0, members.active[:, :-1]
        empty = not len(archive)
        record = {
            "requests": budget.requests,
            "evaluations": len(self.seen),
            "front": len(archive),
            "hypervolume": 0.0 if empty else self._hypervolume(members.objectives),
            self.evaluator.net.task.score: 0.0 if empty else 100 * float(members.accuracy.max()),
            "stitches": 0.0 if empty else float(np.median(switches.sum(1))),
            "active_stitches": 0.0 if empty else float(np.median((switches & active).sum(1))),
        }
        for key, value in record.items():
            self.curve.setdefault(key, []).append(value)
        self.run.tracker.log(record, step=budget.requests, prefix="search/")
        self.display.advance(self.total - max(0, budget.remaining))
        if budget.requests * LOG_LINES // self.total > self.log_lines:
            self.log_lines = budget.requests * LOG_LINES // self.total
            self.display.line(record)

    def single_stitches(self) -> dict[str, list[float]]:
        """Percent score of all networks with one stitch on the search images.

        Four families of m networks, each in the order of the pairs.
        """
        genotypes = single_stitches(len(self.evaluator.net.genotype))
        return {f"single_stitch_{self.evaluator.net.task.score}": (100 * self.evaluator(genotypes).accuracy).tolist()}

    def totals(self) -> dict[str, float]:
        """Requests, unique networks, memo hits in percent of the requests (`answered`), and seconds.

        `images_used`: images that networks saw, in percent of all images for each of them: less than 100 by racing.
        """
        unique = len(self.seen)
        images = [self.evaluator.memo[key].images for key in self.seen]
        return {
            "requests": float(self.requests),
            "evaluations": float(unique),
            "answered": 100 * (1 - unique / self.requests),
            "images_used": 100 * sum(images) / (unique * self.evaluator.samples),
            "search_seconds": time.perf_counter() - self.started,
        }
