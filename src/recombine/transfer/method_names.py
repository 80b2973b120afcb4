"""How transfer plots call and order the methods, and the numbers they draw."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from recombine.core.types import Row
from recombine.report.style import SERIES, measured

__all__ = ["by_seed", "frame_of", "methods_in", "name_of"]

NAMES = {
    "xe": "fine-tuning",
    "self_dist": "self-distillation",
    "ensemble": "ensemble",
    "kl": "KL",
    "xekl": "XE-KL",
    "xekl_mcl": "XE-KL+MCL",
    "kl_dp": "KL+DP",
    "kl_dp_u": "KL+DP unsupervised",
    "bi_kd": "Bi-KD",
    "cd": "CD",
    "crd": "CRD",
}
"""In the order in which they are shown."""
KEYS = ["student", "teacher", "method"]


def name_of(method: str) -> str:
    """A method as readers know it, its variant in brackets: paper/xekl is XE-KL (paper)."""
    variant, _, base = method.rpartition("/")
    return NAMES.get(base, base) + (f" ({variant})" if variant else "")


def methods_in(frame: pd.DataFrame) -> dict[str, str]:
    """The methods of a frame in the order of their names, each with its colour."""
    order = {method: place for place, method in enumerate(NAMES)}
    found = sorted(frame["method"].unique(), key=lambda m: (order.get(m.rpartition("/")[2], len(order)), m))
    return {method: SERIES[place % len(SERIES)] for place, method in enumerate(found)}


def by_seed(rows: Sequence[Row], *metrics: str) -> pd.DataFrame:
    """One line per student, teacher, method and seed, of the rows that have all these metrics."""
    found = measured([row for row in rows if row.cell.keys() >= {*KEYS}], metrics)
    cells = [{key: row.cell[key] for key in KEYS} | {"seed": row.seed} for row in found]
    values = [{name: row.metrics[name] for name in metrics} for row in found]
    lines = pd.DataFrame([cell | value for cell, value in zip(cells, values, strict=True)])
    return lines.groupby([*KEYS, "seed"], as_index=False).mean()


def frame_of(rows: Sequence[Row], *metrics: str) -> pd.DataFrame:
    """One line per student, teacher and method, mean over seeds, of the rows that have all these metrics."""
    return by_seed(rows, *metrics).drop(columns="seed").groupby(KEYS, as_index=False).mean()
