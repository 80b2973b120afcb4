"""What the rows of cloning say of the paper's claims."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from recombine.core.types import Row
from recombine.report.registry import register_derived

__all__ = ["derive_claims", "is_default"]

TUNING = ("finetune", "lwf", "ewc", "lwf_source")
CONTINUAL = ("lwf", "ewc")
TASK = ("dataset", "target", "source", "clone", "fraction", "use_target_data")
"""Cell keys in which a clone and what it is compared with must agree."""


def is_default(row: Row) -> bool:
    """Whether a row is of the method with its default settings, not of an ablation; old rows do not say."""
    cell = row.cell
    head = "rows" if cell.get("use_target_data", True) else "concat"
    default = {"keep_ratio": 0.5, "head": head, "positions": "all", "adapter": "conv1x1_bn"}
    return all(cell.get(key, "none") in (value, "none") for key, value in default.items())


def derive_claims(rows: Sequence[Row]) -> list[Row]:
    """Clones beside what they are compared with, one row for each clone with default settings.

    gain_over_tuning: average accuracy above the best of TUNING in the same run's seed and data, in points;
    gain_over_continual: the same of CONTINUAL; locality_gain: 100 (1 - lost / lost by the best of TUNING), if that one
    lost anything; gain_of_all_images: what the same clone gains from all training images.
    """
    found: dict[tuple, dict[str, Row]] = {}
    for row in rows:
        if row.status == "ok" and is_default(row) and "accuracy_average" in row.metrics:
            key = (*(str(row.cell.get(name)) for name in TASK), row.seed)
            found.setdefault(key, {}).setdefault(str(row.cell["method"]), row)
    return [_claim(key, methods, found) for key, methods in found.items() if "pnc" in methods]


def _claim(key: tuple, methods: dict[str, Row], found: dict[tuple, dict[str, Row]]) -> Row:
    clone = methods["pnc"]
    average = clone.metrics["accuracy_average"]
    metrics = {"accuracy_average": average}
    for name, others in (("tuning", TUNING), ("continual", CONTINUAL)):
        there = [methods[other] for other in others if other in methods]
        if there:
            best = max(there, key=lambda row: row.metrics["accuracy_average"])
            metrics[f"gain_over_{name}"] = average - best.metrics["accuracy_average"]
            if name == "tuning" and best.metrics["locality_drop"] > 0:
                lost = clone.metrics["locality_drop"] / best.metrics["locality_drop"]
                metrics["locality_gain"] = 100 * (1 - lost)
    place = TASK.index("fraction")
    whole = found.get((*key[:place], "1.0", *key[place + 1 :]), {}).get("pnc")
    if whole is not None and whole is not clone:
        metrics["gain_of_all_images"] = whole.metrics["accuracy_average"] - average
    classes = clone.cell.get("classes", len(str(clone.cell["clone"]).split()))
    return replace(clone, cell={**clone.cell, "classes": classes}, metrics=metrics, series={})


register_derived("pnc_claims", derive_claims)
