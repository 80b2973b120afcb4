"""Offspring beside both parents and their ensemble: image by image, so that luck is told from gain."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from recombine.report.significance import holm
from recombine.stitch.pareto import dominates, hypervolume

if TYPE_CHECKING:  # tables are made of rows without torch
    from recombine.stitch.tasks import Task

__all__ = [
    *("ALPHA", "PURPOSES", "REFERENCES", "Columns", "MeasuredNetworks"),
    *("compare_to_references", "count_dominance", "count_surely", "is_offspring", "place_networks", "score_of"),
    "surely_better",
]

Columns = dict[str, list]
"""A table of networks by column."""
REFERENCES = ("a", "b", "ensemble")
"""What offspring are compared with, in the order of every table of references."""
PURPOSES = ("search", "test")
ALPHA = 0.05
"""Of the tests, after Holm's correction."""
MAX_LOSS = 0.3
"""Points of accuracy or mIoU that a cheaper ensemble may lose against the ensemble of both parents."""


class MeasuredNetworks(NamedTuple):
    """Networks with their metrics, and with their answers to every image."""

    columns: Columns
    """`on` (stitches), `output`, `cost` in multiply-adds, `search_accuracy` and `test_accuracy` (or `search_miou` and
    `test_miou`) in percent, others."""
    counts: Mapping[str, np.ndarray]
    """[n, N, K] by `search` and `test`: what each network answers to each image, see `Task`."""
    task: Task
    """How they are scored."""


def score_of(columns: Mapping[str, object], prefix: str = "") -> str:
    """Whether networks (columns under `prefix`) were scored by accuracy or by miou."""
    return "miou" if f"{prefix}search_miou" in columns else "accuracy"


def compare_to_references(
    front: MeasuredNetworks, references: MeasuredNetworks
) -> tuple[dict[str, float], dict[str, list]]:
    """A front compared to both parents and their ensemble (`references`, in this order): metrics, and series.

    Beside `count_dominance`: `*_dominate_*_significant`, offspring that are cheaper and better by McNemar's test (of
    mIoU, by a bootstrap over images), with Holm's correction for all offspring that are cheaper. Hypervolumes are
    percent of the box from (score of the worst reference, cost of the ensemble) to (100 %, 0), references included.
    """
    metrics = count_dominance(front.columns, references.columns)
    series: dict[str, list] = {}
    for purpose in PURPOSES:
        points, parents = (place_networks(side.columns, purpose, references.columns) for side in (front, references))
        for k, name in enumerate(REFERENCES):
            series[f"front_{purpose}_gain_{name}"] = (100 * (parents[k, 0] - points[:, 0])).tolist()
            series[f"front_{purpose}_p_{name}"] = front.task.p_values(
                front.counts[purpose], references.counts[purpose][k]
            ).tolist()
        corner = parents.max(0)
        for name, side in (("", np.concatenate([points, parents])), ("_references", parents)):
            metrics[f"{purpose}_hypervolume{name}"] = 100 * hypervolume(side, corner) / (1 + corner[0])
    named = {key.removeprefix("front_"): values for key, values in series.items()}
    return metrics | count_surely(front.columns | named, references.columns), series


def count_surely(front: Columns, references: Columns) -> dict[str, float]:
    """Offspring that are cheaper and surely more accurate than a reference, and than any, by the front's p-values.

    Nothing where the front has none.
    """
    offspring, metrics = is_offspring(front), {}
    for purpose in PURPOSES if f"{PURPOSES[0]}_p_{REFERENCES[0]}" in front else ():
        points, parents = (place_networks(columns, purpose, references) for columns in (front, references))
        better = np.zeros((len(offspring), len(REFERENCES)), bool)
        for k, name in enumerate(REFERENCES):
            cheaper = offspring & (points[:, 1] < parents[k, 1])
            better[:, k] = surely_better(np.asarray(front[f"{purpose}_p_{name}"]), cheaper)
            metrics[f"{purpose}_dominate_{name}_significant"] = float(better[:, k].sum())
        metrics[f"{purpose}_dominate_any_significant"] = float(better.any(1).sum())
    return metrics


def surely_better(p_values: np.ndarray, tried: np.ndarray) -> np.ndarray:
    """Which of `tried` have a p-value of `ALPHA` at most, after Holm's correction for all of them: all bool [n]."""
    better = np.zeros(len(tried), bool)
    if tried.any():
        better[tried] = holm(p_values[tried].tolist()) <= ALPHA
    return better


def count_dominance(front: Columns, references: Columns) -> dict[str, float]:
    """Networks of a front that are nowhere worse and somewhere better than a reference, and the best of them.

    Only offspring count, networks with a stitch that is on: the references themselves are on most fronts.
    """
    offspring = is_offspring(front)
    metrics = {"front": float(len(offspring)), "offspring": float(offspring.sum())}
    for purpose in PURPOSES:
        points, parents = (place_networks(columns, purpose, references) for columns in (front, references))
        dominated = dominates(points, parents) & offspring[:, None]
        metrics[f"{purpose}_dominate_any"] = float(dominated.any(1).sum())
        metrics[f"{purpose}_dominate_both_parents"] = float(dominated[:, :2].all(1).sum())
        metrics |= {f"{purpose}_dominate_{name}": float(dominated[:, k].sum()) for k, name in enumerate(REFERENCES)}
    return metrics | _chosen(front, references)


def is_offspring(front: Columns) -> np.ndarray:
    """bool [n]: which networks of a front are no references, networks with a stitch that is on."""
    return np.array([bool(on) for on in front["on"]], bool)


def place_networks(columns: Columns, purpose: str, references: Columns) -> np.ndarray:
    """Minus the score 0..1 and cost as a fraction of the ensemble's, both minimised, float64 [n, 2]."""
    cost = np.asarray(columns["cost"], float) / references["cost"][-1]
    return np.stack([-np.asarray(columns[f"{purpose}_{score_of(columns)}"], float) / 100, cost], 1)


def _chosen(front: Columns, references: Columns) -> dict[str, float]:
    """The best offspring on the search images, and the cheapest that is about as good as the ensemble."""
    offspring = [k for k, on in enumerate(front["on"]) if on]
    if not offspring:
        return {}
    ensemble_cost = references["cost"][-1]
    score = score_of(front)
    best = max(offspring, key=lambda k: front[f"search_{score}"][k])
    metrics = {
        f"chosen_{score}": float(front[f"test_{score}"][best]),
        "chosen_gap": float(front[f"search_{score}"][best] - front[f"test_{score}"][best]),
        "chosen_cost": 100 * float(front["cost"][best]) / ensemble_cost,
    }
    enough = references[f"search_{score}"][-1] - MAX_LOSS
    ensembles = [k for k in offspring if front["output"][k] == 2 and front[f"search_{score}"][k] >= enough]
    if ensembles:
        cheapest = min(ensembles, key=lambda k: front["cost"][k])
        metrics["cheap_ensemble_cost"] = 100 * front["cost"][cheapest] / ensemble_cost
        metrics[f"cheap_ensemble_{score}"] = float(front[f"test_{score}"][cheapest])
    return metrics
