"""From rows to numbers: the metrics of a table by cell, over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from recombine.core.types import Row
from recombine.report.spec import MetricColumn, bin_of

__all__ = ["aggregate", "binned"]


def aggregate(rows: Sequence[Row], keys: Sequence[str], metrics: Mapping[str, MetricColumn]) -> pd.DataFrame:
    """Mean, sample standard deviation (ddof 1) and number of seeds of every metric, by the values of `keys`.

    Each seed gives one value first, the mean of its rows or the metric's statistic, so that `std` is the spread over
    seeds and nothing else. Where a metric has a quantile over seeds, it replaces the mean and there is no std.
    Rows that lack a metric take no part in it. Returns a frame indexed by `keys` (as text) with columns
    (metric, mean | std | n).
    """
    rows = [row for row in rows if row.status == "ok"]
    names = dict.fromkeys([*keys, *(key for metric in metrics.values() for key in metric.across)])
    sources = dict.fromkeys(
        key for name, metric in metrics.items() for key in (metric.metric or name, *metric.min_value)
    )
    cells = [{key: str(row.cell.get(key)) for key in names} | {"seed": row.seed} for row in rows]
    labels = pd.DataFrame(cells, columns=[*names, "seed"])
    values = (
        pd.DataFrame([row.metrics for row in rows], index=labels.index).reindex(columns=list(sources)).astype(float)
    )
    columns = {}
    groups: dict[tuple[str, ...], pd.DataFrame] = {}
    for name, metric in metrics.items():
        across = tuple(dict.fromkeys([*keys, "seed", *metric.across]))
        if across not in groups:  # pandas takes as long for all metrics as for one
            groups[across] = values.groupby([labels[key] for key in across], sort=False).mean()
        by_seed = _by_seed(groups[across], [*keys, "seed"], metric.metric or name, metric)
        over_seeds = by_seed.groupby(level=list(keys), sort=False)
        columns[name] = over_seeds.agg(["mean", "std", "count"])
        if metric.quantile is not None:
            columns[name] = columns[name].assign(mean=over_seeds.quantile(metric.quantile), std=np.nan)
    return pd.concat(columns, axis="columns").rename(columns={"count": "n"}, level=1)


def _by_seed(groups: pd.DataFrame, place: list[str], name: str, metric: MetricColumn) -> pd.Series:
    """The metric's statistic over the means of its groups, at each place of the table and seed."""
    for other, floor in metric.min_value.items():
        groups = groups[groups[other] > floor]
    kept = groups[name].groupby(level=place, sort=False)
    if metric.statistic == "std":
        return kept.std(ddof=0).where(kept.count() > 1)
    return kept.agg(metric.statistic)


def binned(row: Row, bins: Mapping[str, Sequence[float]]) -> Row:
    """The row with the bin of each binned key in its cell; a row outside all bins lacks the key."""
    cell = dict(row.cell)
    for key, edges in bins.items():
        value = cell.pop(key, row.metrics.get(key))
        if value is not None and edges[0] <= float(value) <= edges[-1]:
            cell[key] = bin_of(float(value), edges)
    return replace(row, cell=cell)
