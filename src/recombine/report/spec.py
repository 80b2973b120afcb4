"""What a table consists of: `config/table/<entry>/<table>.yaml`, read and checked."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from recombine.core.errors import ConfigError, did_you_mean
from recombine.core.types import Row
from recombine.report.derived import check

__all__ = ["MetricColumn", "TableSpec", "bin_of", "everything", "excluded", "load_specs", "matches", "pick"]


STATISTICS = ("mean", "median", "std", "min", "max", "count")
STAR_NOTE = (
    "★: the best median over seeds, and all that are not significantly worse "
    "(one-sided Mann-Whitney U, Holm's correction, alpha 0.05; fewer than five seeds can hardly show a difference)"
)

INTERVAL_NOTE = "in brackets: 95 % interval; ★: it leaves out 0"


@dataclass(frozen=True)
class MetricColumn:
    """How one metric of the rows is shown."""

    label: str
    format: str = ".2f"
    """Python number format of the mean; its sign option is dropped for the standard deviation."""
    unit: str = ""
    claimed: str = ""
    """Metric of the rows that holds what the weights' authors claim: the published value where the table has none."""
    metric: str = ""
    """Metric of the rows that is shown, if the column has another name."""
    statistic: str = "mean"
    """mean, median, std (population, of two at least), min, max or count: over the groups of `across`."""
    across: list[str] = field(default_factory=list)
    """Cell keys whose values make the groups; each is averaged first. Example: `statistic: median, across: [student]`
    is the mean over each student's teachers, then the median over students."""
    min_value: dict[str, float] = field(default_factory=dict)
    """Metric -> number: groups whose mean of that metric is not above it are excluded."""
    quantile: float | None = None
    """0..1: this quantile over seeds in place of their mean and standard deviation."""
    interval: bool = False
    """Show the metrics <name>_low and <name>_high as its interval in place of the spread over seeds, and a star where
    it leaves out 0."""
    compare_by: list[str] = field(default_factory=list)
    """Cell keys whose values are compared where all other keys agree: those not significantly worse get a star."""
    exclude_from_comparison: list[str] = field(default_factory=list)
    """Values of these keys that are not compared."""

    @property
    def heading(self) -> str:
        """Label with its unit, as it heads a column."""
        return f"{self.label} ({self.unit})" if self.unit else self.label

    @property
    def note(self) -> str:
        """What a reader must know of the statistic; nothing where the heading says it."""
        if self.compare_by:
            return STAR_NOTE
        if self.interval:
            return INTERVAL_NOTE
        if self.statistic in ("mean", "count"):
            return ""
        limits = "".join(f", those above {floor:g} in {name} only" for name, floor in self.min_value.items())
        kind = "population std" if self.statistic == "std" else self.statistic
        return f"{self.label}: {kind} over the means by {' and '.join(self.across)}{limits}"

    def __post_init__(self) -> None:
        if self.statistic not in STATISTICS:
            raise ValueError(f"statistic {self.statistic} is none of {', '.join(STATISTICS)}")
        if not self.across and (self.min_value or self.statistic != "mean"):
            raise ValueError(f"statistic {self.statistic} needs `across`, the keys that make its groups")
        if self.quantile is not None and not 0 <= self.quantile <= 1:
            raise ValueError(f"quantile {self.quantile} is not in 0..1")


@dataclass(frozen=True)
class TableSpec:
    """One table: which rows it takes, how it is laid out, which cells are expected, what was published."""

    name: str
    """`<entry>/<table>`, the path of its file."""
    title: str
    entry: str
    rows: list[str]
    """Cell keys that make a row of the table."""
    metrics: dict[str, MetricColumn]
    columns: list[str] = field(default_factory=list)
    """Cell keys (in YAML one or a list) whose values become columns; without them every metric is a column."""
    derived: dict[str, Any] = field(default_factory=dict)
    """The registered `function` (in YAML its name alone will do) that makes the table's rows of all the entry's, and
    its options: what compares a row with others."""
    bins: dict[str, list[float]] = field(default_factory=dict)
    """Key -> edges in ascending order: the key stands for the bin, [low, high), of that cell key or metric. The last
    bin has its upper edge; rows outside all bins are left out with a warning."""
    where: dict[str, Any] = field(default_factory=dict)
    """Cell key -> value, or list of values, that a row must have."""
    exclude: dict[str, Any] = field(default_factory=dict)
    """Cell key -> value, or list of values, that a row must not have."""
    average_over: list[str] = field(default_factory=list)
    """Cell keys that are averaged over on purpose; a cell whose rows differ in any other has no value."""
    labels: dict[str, str] = field(default_factory=dict)
    """Headings of cell keys."""
    runs: str = ""
    """Heading of a column with the most seeds of a row, in place of the number beside each value."""
    pairs: list[str] = field(default_factory=list)
    """Two cell keys: every ordered pair of different values seen under either of them is expected."""
    expected: list[dict[str, Any]] = field(default_factory=list)
    """Cells that belong to the table; a list as a value stands for each of its items."""
    seeds: list[int] = field(default_factory=list)
    """Seeds every cell should have."""
    command: str = ""
    """Command that measures a cell, with {key} for its values and {seed}."""
    source: str = ""
    """Where the published values come from."""
    note: str = ""
    """Note below the table."""
    published: list[dict[str, Any]] = field(default_factory=list)
    """Cell keys and metric values together, one entry a cell."""

    @property
    def keys(self) -> list[str]:
        """All cell keys that tell one cell of the table from another."""
        return [*self.rows, *self.columns]

    @classmethod
    def parse(cls, name: str, node: Mapping[str, Any]) -> TableSpec:
        """Check the mapping of a YAML file and turn it into a table specification.

        Raises:
            ConfigError: names every unknown or missing key and every list or number that is not one.
        """
        allowed = [item.name for item in fields(cls) if item.name != "name"]
        problems = [
            f"{name}: unknown key `{key}`; {did_you_mean(key, allowed, show=99)}" for key in node if key not in allowed
        ]
        problems += [
            f"{name}: `{key}` is missing" for key in ("title", "entry", "rows", "metrics") if not node.get(key)
        ]
        if problems:
            raise ConfigError(problems)
        metrics = {key: _metric(name, key, value) for key, value in node["metrics"].items()}
        derived = node.get("derived", {})
        derived = {"function": derived} if isinstance(derived, str) else derived
        if derived:
            check(name, derived)
        columns = node.get("columns", [])
        columns = [columns] if isinstance(columns, str) else columns
        spec = cls(name=name, **{**node, "metrics": metrics, "columns": columns, "derived": derived})
        cells = [*spec.published, *spec.expected]
        known = {*spec.keys, *metrics}
        twice = [key for key in spec.bins if key not in spec.keys or key in metrics]
        if twice:
            raise ConfigError(
                f"{name}: `bins` needs keys of the table that are not its metrics too, unlike {', '.join(twice)}"
            )
        stray = sorted({key for cell in cells for key in cell if key not in known})
        if stray:
            raise ConfigError(f"{name}: published or expected cells have keys the table has not: {', '.join(stray)}")
        return spec

    def expected_cells(self) -> list[dict[str, str]]:
        """Cells named by `expected` and `published`, lists multiplied out, values as text."""
        cells = []
        for node in [*self.expected, *self.published]:
            choices = [value if isinstance(value, list) else [value] for key, value in node.items() if key in self.keys]
            names = [key for key in node if key in self.keys]
            cells += [dict(zip(names, map(str, choice), strict=True)) for choice in itertools.product(*choices)]
        return [cell for cell in cells if set(cell) == set(self.keys)]


def _metric(table: str, name: str, node: Any) -> MetricColumn:
    try:
        metric = MetricColumn(**({"label": name} | (node or {})))
        format(1.0, metric.format)
    except (TypeError, ValueError) as error:
        known = ", ".join(item.name for item in fields(MetricColumn))
        raise ConfigError(f"{table}: metric `{name}` takes {known}: {error}") from error
    return metric


def bin_of(value: float, edges: Sequence[float]) -> str:
    """The name of the bin [low, high) that holds a value; the last one holds its upper edge too."""
    place = min(bisect_right(edges, value), len(edges) - 1)
    return f"{edges[place - 1]:g} to {edges[place]:g}"


def load_specs(folder: Path) -> dict[str, TableSpec]:
    """Every table below `folder` by its name `<entry>/<table>`.

    Raises:
        ConfigError: no table is there, or one of the files is not a table.
    """
    specs = {}
    for path in sorted(Path(folder).rglob("*.yaml")):
        name = path.relative_to(folder).with_suffix("").as_posix()
        try:
            node = yaml.safe_load(path.read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise ConfigError(f"{path} is not YAML: {error}") from error
        if not isinstance(node, dict):
            raise ConfigError(f"{path} must hold a mapping with title, entry, rows and metrics")
        specs[name] = TableSpec.parse(name, node)
    if not specs:
        raise ConfigError(f"no table (*.yaml) below {folder}")
    return specs


def pick(specs: Mapping[str, TableSpec], name: str) -> TableSpec:
    """The table called `name`.

    Raises:
        ConfigError: there is none; says which is nearest and which there are.
    """
    if name not in specs:
        raise ConfigError(f"unknown table `{name}`; {did_you_mean(name, specs)} (recombine table shows all)")
    return specs[name]


def matches(cell: Mapping[str, Any], where: Mapping[str, Any]) -> bool:
    """Whether a cell has the given values; a key the cell lacks does not match."""
    for key, allowed in where.items():
        values = allowed if isinstance(allowed, list) else [allowed]
        if key not in cell or str(cell[key]) not in map(str, values):
            return False
    return True


def excluded(cell: Mapping[str, Any], exclude: Mapping[str, Any]) -> bool:
    """Whether a cell has any of the values to exclude."""
    return any(matches(cell, {key: value}) for key, value in exclude.items())


def everything(entry: str, rows: Sequence[Row]) -> TableSpec:
    """A table of all cell keys and metrics that rows have: for an entry that no table is written for yet."""
    keys = list(dict.fromkeys(key for row in rows for key in row.cell))
    names = list(dict.fromkeys(name for row in rows for name in row.metrics))
    shared = [key for key in keys if all(key in row.cell for row in rows)]
    metrics = {name: MetricColumn(name, ".4g") for name in names}
    return TableSpec(f"{entry}/everything", "All measured values", entry, shared, metrics)
