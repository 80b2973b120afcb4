"""The frozen networks of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from recombine import models as zoo
from recombine.core.errors import ConfigError
from recombine.data import Data
from recombine.models import Model
from recombine.pnc.data import CloneData
from recombine.pnc.settings import PncSettings
from recombine.pnc.sources import list_sources
from recombine.run.run import Run

__all__ = ["build_source_networks", "build_target"]


def build_target(settings: PncSettings, run: Run, data: Data) -> Model:
    """The target, frozen; ConfigError if its classes are not those of its data."""
    return _build(settings.target.model_dump(exclude_unset=True), data, "target", settings.weights_root, run)


def build_source_networks(settings: PncSettings, run: Run, pairs: Sequence[CloneData]) -> list[Model]:
    """The network of each source, frozen; ConfigError if its classes are not those of its data."""
    sources = list_sources(settings.model_dump(exclude_unset=True))
    return [
        _build(source.model, pair.source, "source", settings.weights_root, run)
        for source, pair in zip(sources, pairs, strict=True)
    ]


def _build(node: Mapping[str, Any] | str, data: Data, role: str, weights_root: str, run: Run) -> Model:
    model = zoo.build(node, weights_root=weights_root, seed=run.seed)
    if model.classes != data.classes:
        raise ConfigError(
            f"{role} {model.name} has {model.classes} classes and its data, {data.name}, {data.classes}; choose "
            f"the data it was trained on (dataset= for the target, dataset@source_data= for the source)"
        )
    return model.to(run.device).eval().requires_grad_(False)
