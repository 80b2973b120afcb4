"""Workspaces and reports of wandb for each entry and table, from config/table, built by wandb-workspaces."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

from recombine.report.spec import TableSpec

__all__ = ["as_json", "report", "workspace"]

SECTIONS = ("val", "test")
"""Where the curves of a metric are, by the images it is measured on."""

NAMED = ("method", "student", "teacher", "model", "search")
"""Keys of tables that are nodes of the config with a name."""


def workspace(entry: str, specs: Sequence[TableSpec], project: str, entity: str) -> Any:
    """A workspace of an entry's runs: results, curves, pictures, speed; runs that differ in the seed are one group."""
    wr: Any = import_module("wandb_workspaces.reports.v2")
    ws: Any = import_module("wandb_workspaces.workspaces")

    names = metrics(specs)
    curves = [wr.LinePlot(title=name, x="step", y=[f"{section}/{name}" for section in SECTIONS]) for name in names]
    training = [wr.LinePlot(title=name, x="step", y=[f"train/{name}"]) for name in ("loss", "lr", "gradient_norm")]
    speed = wr.LinePlot(title="images per second", x="step", y=["time/images_per_second"])
    sections = {
        "Results": [*_bars(wr, names), wr.RunComparer(diff_only=True)],
        "Curves": curves,
        "Training": [*training, speed],
        "Pictures and tables": [wr.MediaBrowser(media_keys=["media/rows"])],
    }
    return ws.Workspace(
        name=f"Recombine: {entry}",
        entity=entity,
        project=project,
        sections=[ws.Section(name=name, panels=panels, is_open=True) for name, panels in sections.items()],
        settings=ws.WorkspaceSettings(x_axis="step", group_by_prefix="first"),
        runset_settings=ws.RunsetSettings(filters=f"Metric('JobType') == '{entry}'", groupby=[ws.Metric("Group")]),
    )


def report(spec: TableSpec, table: str, command: str, project: str, entity: str | None = None) -> Any:
    """A report of a table: what it shows, ours beside what was published, and charts of the runs of its experiment.

    `table`: the table in Markdown, empty before anything has run. `command`: what fills it. Without an `entity` it can
    be looked at and not be saved.
    """
    wr: Any = import_module("wandb_workspaces.reports.v2")

    place = {"entity": entity, "project": project} if entity else {}
    runs = wr.Runset(name=spec.name, filters=f"Tags in ['{spec.name}']", groupby=_groups(spec), **place)
    blocks = [
        wr.H1(spec.title),
        wr.P(f"Filled by the runs of: {command}"),
        *([wr.MarkdownBlock(table)] if table else []),
        wr.PanelGrid(runsets=[runs], panels=[*_bars(wr, metrics([spec])), wr.RunComparer(diff_only=True)]),
    ]
    named = {"entity": entity or "", "project": project}
    return wr.Report(title=f"{spec.name}: {spec.title}", description=spec.source, blocks=blocks, **named)


def metrics(specs: Sequence[TableSpec]) -> list[str]:
    """The metrics that tables show, by their names in rows."""
    return list(dict.fromkeys(metric.metric or name for spec in specs for name, metric in spec.metrics.items()))


def _bars(wr: Any, names: Sequence[str]) -> list[Any]:
    return [wr.BarPlot(title=name, metrics=[f"final/{name}"]) for name in ["objective", *names]]


def _groups(spec: TableSpec) -> list[str]:
    """Keys of the table that are settings, as wandb groups runs by them."""
    return [f"config.{key}.name.value" for key in spec.keys if key in NAMED]


def as_json(made: Any) -> dict[str, Any]:
    """A workspace or report as wandb would store it, without a server."""
    return made._to_model().model_dump(mode="json", by_alias=True)
