"""What transfer plots draw: rows as data frames, and names, order and colours of the methods."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from recombine.core.types import Row
from recombine.report.style import SERIES, measured

__all__ = ["assign_colors", "label_method", "mean_frame", "seed_frame"]

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


def label_method(method: str) -> str:
    """The name of a method in plots, its variant in brackets: paper/xekl is XE-KL (paper)."""
    variant, _, base = method.rpartition("/")
    return NAMES.get(base, base) + (f" ({variant})" if variant else "")


def assign_colors(frame: pd.DataFrame) -> dict[str, str]:
    """The colour of each method of a frame, in the order of NAMES."""
    order = {method: place for place, method in enumerate(NAMES)}
    found = sorted(frame["method"].unique(), key=lambda m: (order.get(m.rpartition("/")[2], len(order)), m))
    return {method: SERIES[place % len(SERIES)] for place, method in enumerate(found)}


def seed_frame(rows: Sequence[Row], *metrics: str) -> pd.DataFrame:
    """One row per student, teacher, method and seed, of the rows that have all these metrics."""
    rows = measured([row for row in rows if row.cell.keys() >= {*KEYS}], metrics)
    cells = [{key: row.cell[key] for key in KEYS} | {"seed": row.seed} for row in rows]
    values = [{name: row.metrics[name] for name in metrics} for row in rows]
    frame = pd.DataFrame([cell | value for cell, value in zip(cells, values, strict=True)])
    return frame.groupby([*KEYS, "seed"], as_index=False).mean()


def mean_frame(rows: Sequence[Row], *metrics: str) -> pd.DataFrame:
    """One row per student, teacher and method, mean over seeds, of the rows that have all these metrics."""
    return seed_frame(rows, *metrics).drop(columns="seed").groupby(KEYS, as_index=False).mean()
