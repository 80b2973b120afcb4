"""What the guided command found, as rows for tables and the report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from recombine.core.paired import compare_paired
from recombine.core.types import Row
from recombine.improve.bundle import CHOSEN, Result
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
    names = {"the original": "original", "fine-tuning alone": "finetune"}
    chosen = result.tested[CHOSEN]
    metrics = {"images": float(len(chosen)), "accuracy": 100 * float(chosen.mean())}
    for said, name in names.items():
        if said in result.tested:
            metrics[f"accuracy_{name}"] = 100 * float(result.tested[said].mean())
            metrics |= compare_paired(chosen, result.tested[said]).metrics(f"gain_over_{name}")
    return metrics


def _trial(outcome: Outcome) -> dict[str, Any]:
    return {"trial": outcome.name, "method": outcome.method, "epochs": outcome.epochs or 0}


def _tried(outcome: Outcome, result: Result) -> dict[str, float]:
    metrics = {"seconds": outcome.seconds}
    if outcome.correct is not None:
        metrics["accuracy_val"] = outcome.accuracy
        if result.baseline is not None and result.baseline.correct is not None:
            metrics |= compare_paired(outcome.correct, result.baseline.correct).metrics("gain_over_finetune")
    return metrics
