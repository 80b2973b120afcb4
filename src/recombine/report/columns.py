"""What a reader sees of a table: which columns, in which order, with which text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from recombine.report.spec import MetricColumn, TableSpec

__all__ = ["Layout", "natural"]

STD_NOTE = "mean ± sample standard deviation (ddof 1) over seeds"


def natural(text: str) -> list[tuple[int, Any]]:
    """Sort key under which resnet8 comes before resnet20, the bin -3 to -1 before -1 to 1, and 0.05 before 0.1."""
    parts = re.split(r"((?<![\w.])-?\d+\.\d+(?![\w.])|(?<!\S)-\d+|\d+)", str(text))
    return [(0, float(part)) if place % 2 else (1, part) for place, part in enumerate(parts)]


class Layout:
    """The readable form of a frame: which columns a reader sees, and the text in them."""

    def __init__(self, spec: TableSpec, frame: pd.DataFrame, where: Mapping[str, Any]) -> None:
        self.spec, self.frame = spec, frame
        constant = {key: frame[key].iloc[0] for key in spec.rows if len(frame) and frame[key].nunique() == 1}
        fixed = [key for key in spec.rows if key in constant and (len(frame) > 1 or key in where)]
        self.fixed = {key: constant[key] for key in (fixed if len(fixed) < len(spec.rows) else fixed[:-1])}
        self.row_keys = [key for key in spec.rows if key not in self.fixed]
        known = {name: metric for name, metric in spec.metrics.items() if name in frame or self._published(name)}
        self.metrics = known or spec.metrics
        values = {tuple(record[key] for key in spec.columns) for record in frame.to_dict("records")}
        self.columns = sorted(values, key=lambda value: [natural(part) for part in value]) if spec.columns else [()]
        counts = [frame[f"{name}_n"].dropna() for name in self.metrics if f"{name}_n" in frame]
        self.seeds = pd.concat(counts) if counts else pd.Series(dtype=int)
        self.cells = {tuple(record[key] for key in spec.keys): record for record in frame.to_dict("records")}

    def _published(self, metric: str) -> bool:
        return f"{metric}_published" in self.frame

    def headers(self) -> list[str]:
        headers = [self.spec.labels.get(key, key) for key in self.row_keys] + [self.spec.runs] * bool(self.spec.runs)
        for value in self.columns:
            for name, metric in self.metrics.items():
                many = not value or len(self.metrics) > 1
                parts = [part for part in value if part != "none"] or value
                heading = " ".join([*parts, *([metric.heading] if many else [])])
                headers += (
                    [f"{heading} published", f"{heading} ours", "difference"] if self._published(name) else [heading]
                )
        return headers

    def rows(self) -> list[list[str]]:
        seen = dict.fromkeys(tuple(cell[: len(self.spec.rows)]) for cell in self.cells)
        return [[*self._names(place), *self._values(place)] for place in seen]

    def _names(self, place: tuple[str, ...]) -> list[str]:
        return [value for key, value in zip(self.spec.rows, place, strict=True) if key in self.row_keys]

    def _values(self, place: tuple[str, ...]) -> list[str]:
        several = self.seeds.nunique() > 1 and not self.spec.runs
        texts = [self._runs(place)] if self.spec.runs else []
        for value in self.columns:
            cell = self.cells.get((*place, *value))
            for name, metric in self.metrics.items():
                texts += _texts(cell, name, metric, published=self._published(name), count=several)
        return texts

    def _runs(self, place: tuple[str, ...]) -> str:
        """The most seeds that a value of the row is of."""
        cells = [cell for key, cell in self.cells.items() if key[: len(place)] == place]
        counts = [cell.get(f"{name}_n") for cell in cells for name in self.metrics]
        return str(max((int(n) for n in counts if not pd.isna(n)), default=0))

    def notes(self) -> list[str]:
        notes = [", ".join(f"{self.spec.labels.get(key, key)}: {value}" for key, value in self.fixed.items())]
        notes += dict.fromkeys(metric.note for metric in self.metrics.values())
        if len(self.seeds) and self.seeds.max() > 1:
            count = "" if self.spec.runs else "; n stands with each value"
            count = f"; n = {self.seeds.max()}" if self.seeds.nunique() == 1 and not self.spec.runs else count
            means = any(metric.quantile is None for metric in self.metrics.values())
            notes.append((STD_NOTE if means else "over seeds") + count)
        if any(self._published(name) for name in self.metrics):
            notes.append(f"published: {self.spec.source or 'source not stated'}; difference = ours - published")
        return [note for note in notes if note]


def _texts(cell: dict[str, Any] | None, name: str, metric: MetricColumn, *, published: bool, count: bool) -> list[str]:
    """Text of one metric of one cell: ours, or published, ours and difference."""
    if cell is None:
        return ["·"] * (3 if published else 1)
    ours = cell.get(name, np.nan)
    if pd.isna(ours):
        text = "n/a" if cell["status"].startswith("ok") else cell["status"]
    else:
        std = cell.get(f"{name}_std", np.nan)
        counted = metric.statistic == "count"
        spread = "" if pd.isna(std) or counted else f" ± {std:{metric.format.lstrip('+')}}"
        if metric.interval and not pd.isna(cell.get(f"{name}_low", np.nan)):
            spread = f" [{cell[f'{name}_low']:{metric.format}}, {cell[f'{name}_high']:{metric.format}}]"
        text = format(ours, metric.format) + spread
        text += f" (n = {cell[f'{name}_n']})" if count and not counted else ""
        text += " ★" if cell.get(f"{name}_star", False) else ""
        text += " †" if cell["status"] != "ok" else ""
    if not published:
        return [text]
    paper, signed = cell[f"{name}_published"], f"+{metric.format.lstrip('+')}"
    gap = ours - paper
    return ["" if pd.isna(paper) else format(paper, metric.format), text, "" if pd.isna(gap) else format(gap, signed)]
