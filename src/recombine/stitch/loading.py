"""The parents of a run, from checkpoints or from the files of earlier crosses."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

from recombine.core.errors import ConfigError
from recombine.models import Model, build
from recombine.models.serialization import kind_of
from recombine.models.settings import name_of
from recombine.run.config import DictConfig
from recombine.run.run import Run
from recombine.stitch import offspring

__all__ = ["load_parent", "load_parents", "parent_nodes", "preprocessing_differences"]


def parent_nodes(cfg: DictConfig) -> list[Any]:
    """Names or config nodes of the parents: `parents`, or else `a` and `b`."""
    return list(cfg.parents) if isinstance(cfg.parents, Sequence) and cfg.parents else [cfg.a, cfg.b]


def load_parents(cfg: DictConfig, run: Run) -> list[Model]:
    """All parents, frozen and in eval mode; one that is an offspring file is an offspring of an earlier cross.

    ConfigError if two are one network, or do not see the same pixels.
    """
    nodes = parent_nodes(cfg)
    models = [load_parent(node, cfg, run) for node in nodes]
    for (one, a), (other, b) in combinations(zip(nodes, models, strict=True), 2):
        if problems := preprocessing_differences(a, b):
            raise ConfigError(problems)
        if a.digest() == b.digest():
            raise ConfigError(f"{name_of(one)} and {name_of(other)} are one network; offspring need two")
    return models


def load_parent(node: Any, cfg: DictConfig, run: Run) -> Model:
    """One parent by its name, file or config node, frozen and in eval mode on the device."""
    name = name_of(node)
    model = (
        offspring.load(name)
        if kind_of(name) == "offspring"
        else build(node, weights_root=cfg.weights_root, seed=run.seed)
    )
    return model.to(run.device).eval().requires_grad_(False)


def preprocessing_differences(a: Model, b: Model) -> list[str]:
    """Why two parents do not see the same pixels: size, crop and resizing have to be equal, normalisation has not.

    Deviation: the authors give both parents one normalisation too; here each keeps that of its training, so that
    it scores as it does alone.
    """
    first, second = a.preprocess.settings(), b.preprocess.settings()
    return [
        f"the parents see different pixels: {key} is {first[key]} for {a.name} and {second[key]} for {b.name}; set "
        f"a.{key}={second[key]} or b.{key}={first[key]} (in a list: {{name: {b.name}, {key}: {first[key]}}})"
        for key in ("size", "crop_pct", "interpolation")
        if first[key] != second[key]
    ]
