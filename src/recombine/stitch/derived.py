"""Derived rows, for tables that compare searches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from recombine.core.types import Row
from recombine.report.registry import register_derived
from recombine.stitch.comparison import PURPOSES, count_dominance, count_surely, score_of
from recombine.stitch.pareto import front, normalized_hypervolumes

__all__ = ["crosses", "dominance", "hypervolumes", "networks"]

NETWORKS = ("A", "B", "ensemble")
"""How tables call the `REFERENCES`."""


def hypervolumes(rows: Sequence[Row], above: float | str = 0.0) -> list[Row]:
    """Rows of stitching with the normalised hypervolumes of their fronts, on axes common to all runs of the parents.

    `normalized_hypervolume_search` and `_test`, each on the images of that name, of the networks whose score (accuracy
    or mIoU) is above `above` percent on the search images, or with `parents` no lower there than the worse parent's.
    For each seed there is one more row whose `search` is `references`: both parents and their ensemble, taken as a
    front. Rows without a front stay unchanged.
    """
    derived = [row for row in rows if not _has_front(row)]
    for group in _group_by_task(rows):
        by_seed = {row.seed: row for row in group}
        metrics: list[dict[str, float]] = [{} for _ in (*group, *by_seed)]
        for purpose in PURPOSES:
            fronts = [_points(row, "front", purpose, _floor(row, above)) for row in group]
            references = [_points(row, "reference", purpose) for row in by_seed.values()]
            volumes = normalized_hypervolumes([*fronts, *references], np.concatenate(references))
            for of_row, volume in zip(metrics, volumes.tolist(), strict=True):
                of_row[f"normalized_hypervolume_{purpose}"] = volume
        derived += [replace(row, metrics=row.metrics | of_row) for row, of_row in zip(group, metrics, strict=False)]
        for row, of_row in zip(by_seed.values(), metrics[len(group) :], strict=True):
            cell = row.cell | {"search": "references"} | ({"population": "none"} if "population" in row.cell else {})
            derived.append(replace(row, cell=cell, metrics=of_row, run="references"))
    return derived


def crosses(rows: Sequence[Row]) -> list[Row]:
    """Rows of offspring that more than two parents took part in."""
    return [row for row in rows if "test_accuracy_all_together" in row.metrics]


def dominance(rows: Sequence[Row]) -> list[Row]:
    """Rows whose counts of dominance are of offspring alone: version 0.1 counted parents that are on the front too."""
    return [replace(row, metrics=_recounted(row)) if _has_front(row) else row for row in rows]


def _recounted(row: Row) -> dict[str, float]:
    """The metrics of a row, those of `count_dominance` from its series."""
    front_, references = (
        {key.removeprefix(prefix): values for key, values in row.series.items() if key.startswith(prefix)}
        for prefix in ("front_", "reference_")
    )
    kept = {key: value for key, value in row.metrics.items() if not key.startswith(("chosen_", "cheap_ensemble_"))}
    return kept | count_dominance(front_, references) | count_surely(front_, references)


def networks(rows: Sequence[Row]) -> list[Row]:
    """A row for each parent, the ensemble and the chosen offspring of each search, with metrics on the test images.

    `network` is its name in the cell. The chosen offspring is the most accurate one on the search images. Rows without
    a front stay unchanged.
    """
    derived = [row for row in rows if not _has_front(row)]
    for group in _group_by_task(rows):
        for row in {row.seed: row for row in group}.values():
            cell = {key: value for key, value in row.cell.items() if key not in ("search", "population")}
            for place, name in enumerate(NETWORKS):
                derived.append(_network(row, cell, name, "reference", place))
        for row in group:
            offspring = [k for k, on in enumerate(row.series["front_on"]) if on]
            if offspring:
                column = row.series[f"front_search_{score_of(row.series, 'front_')}"]
                chosen = max(offspring, key=column.__getitem__)
                derived.append(_network(row, row.cell, f"offspring of {row.cell['search']}", "front", chosen))
    return derived


def _network(row: Row, cell: Mapping[str, Any], name: str, columns: str, place: int) -> Row:
    """One network of a run as a row."""
    keys = (score_of(row.series, f"{columns}_"), "ece", "ece_scaled", "loss", "loss_scaled")
    metrics = {key: float(row.series[f"{columns}_test_{key}"][place]) for key in keys}
    metrics["temperature"] = float(row.series[f"{columns}_temperature"][place])
    run = row.run if columns == "front" else "references"
    return replace(row, cell={**cell, "network": name}, metrics=metrics, series={}, run=run)


def _has_front(row: Row) -> bool:
    return row.status == "ok" and bool(row.series.get("front_cost"))


def _group_by_task(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows of finished searches, grouped by everything but the search, its population and the seed."""
    found: dict[tuple, list[Row]] = {}
    for row in filter(_has_front, rows):
        rest = sorted((key, str(value)) for key, value in row.cell.items() if key not in ("search", "population"))
        found.setdefault(tuple(rest), []).append(row)
    return list(found.values())


def _floor(row: Row, above: float | str) -> float:
    """The score on the search images above which a network counts."""
    worse = min(row.series[f"reference_search_{score_of(row.series, 'reference_')}"][:2])
    return float(np.nextafter(worse, -np.inf)) if above == "parents" else float(above)


def _points(row: Row, columns: str, purpose: str, above: float = -np.inf) -> np.ndarray:
    """The front of the networks of a run, float64 [f, 2]: minus the score, multiply-adds, both minimised."""
    score = score_of(row.series, f"{columns}_")
    known = np.array(row.series[f"{columns}_search_{score}"], float) > above
    points = np.stack([-np.array(row.series[f"{columns}_{purpose}_{score}"], float), row.series[f"{columns}_cost"]], 1)
    return points[known][front(points[known])]


register_derived("hypervolumes", hypervolumes)
register_derived("networks", networks)
register_derived("dominance", dominance)
register_derived("crosses", crosses)
