"""What the guided command found, as rows for tables and the report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from recombine.core.paired import compare_paired
from recombine.core.types import Row
from recombine.improve.bundle import BASELINE, CHOSEN, ORIGINAL, Result
from recombine.improve.trials import Outcome

__all__ = ["result_rows"]


def result_rows(result: Result, network: str, dataset: str, about: Mapping[str, Any]) -> list[Row]:
    """A row of the test images, `split: test`, and one of the validation images for each trial, `split: val`.

    `about` becomes their provenance. The test row has `gain_over_<other>` with its interval, in points, for what the
    chosen network is compared with: the original and fine-tuning alone.
    """
    common = {"dataset": dataset, "network": network}
    rows = [Row({**common, "split": "test", "chosen": result.chosen.name}, _tested(result))]
    rows += [Row({**common, "split": "val", **_trial(outcome)}, _tried(outcome, result)) for outcome in result.outcomes]
    name = f"improve-{network}-{dataset}"
    return [Row(row.cell, row.metrics, {}, "improve", 0, name, name, "ok", None, dict(about)) for row in rows]


def _tested(result: Result) -> dict[str, float]:
    compared = {ORIGINAL: ("original", result.outcomes[0]), BASELINE: ("finetune", result.baseline)}
    chosen = result.tested[CHOSEN]
    metrics = {"images": float(len(chosen)), "accuracy": 100 * float(chosen.mean())}
    for said, (name, outcome) in compared.items():
        if said in result.tested:
            metrics[f"accuracy_{name}"] = 100 * float(result.tested[said].mean())
            same = outcome is result.chosen
            metrics |= _gain(f"gain_over_{name}", chosen, result.tested[said], same)
    return metrics


def _gain(name: str, first: np.ndarray, second: np.ndarray, same: bool) -> dict[str, float]:
    """What the first gets right beyond the second, with its interval; 0 of one network over itself."""
    return {name: 0.0} if same else compare_paired(first, second).metrics(name)


def _trial(outcome: Outcome) -> dict[str, Any]:
    return {"trial": outcome.name, "method": outcome.method, "epochs": outcome.epochs or 0}


def _tried(outcome: Outcome, result: Result) -> dict[str, float]:
    metrics, baseline = {"seconds": outcome.seconds}, result.baseline
    if outcome.correct is not None:
        metrics["accuracy_val"] = outcome.accuracy
        if baseline is not None and baseline.correct is not None:
            metrics |= _gain("gain_over_finetune", outcome.correct, baseline.correct, outcome is baseline)
    return metrics
