"""The predictions of a library of networks: one network at a time, each once, by as many processes as there are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from recombine.core.distributed import world
from recombine.core.errors import Interrupted
from recombine.core.locks import exclusive
from recombine.core.settings import to_dict
from recombine.data import Data
from recombine.engine.class_predictions import ClassPredictions, class_path, predict_classes
from recombine.flips.candidates import open_model
from recombine.models import Model
from recombine.run.run import Run

if TYPE_CHECKING:
    from omegaconf import DictConfig

__all__ = ["Evaluated", "evaluate_models", "lock_file"]


class Evaluated(NamedTuple):
    """A network and what it said."""

    model: Model
    """Without its weights."""
    digest: str
    predictions: ClassPredictions
    """Without logits."""
    file: Path | None
    """Where they are kept."""


def evaluate_models(cfg: DictConfig, run: Run, data: Data, nodes: Mapping[str, Any]) -> dict[str, Evaluated]:
    """Predictions of every network for `split`, each at its own input size; with `random_baseline`, of copies too.

    Networks are built and evaluated one at a time and their predictions kept below cache_root, so that a run that was
    killed goes on with the first network that is missing. Runs with other output folders may work on the same list
    at once, on other GPUs or machines that share cache_root: a network that one of them has in work is left to it.
    """
    wanted = dict(nodes) | ({f"{name}-random": node for name, node in nodes.items()} if cfg.random_baseline else {})
    found: dict[str, Evaluated] = {}
    while len(found) < len(wanted):
        before = len(found)
        for name in [name for name in wanted if name not in found]:
            # a process of several stays with the others of its run
            with exclusive(lock_file(cfg, run, name, wanted[name]), wait=False) as mine:
                if mine or world() > 1:
                    found[name] = _evaluate(cfg, run, data, wanted[name], copy=name not in nodes)
        if len(found) == before:  # all that are left are in work elsewhere
            name = next(name for name in wanted if name not in found)
            with exclusive(lock_file(cfg, run, name, wanted[name]), stopped=partial(_stop, run)):
                pass
    return {name: found[name] for name in wanted}


def _evaluate(cfg: DictConfig, run: Run, data: Data, node: Any, *, copy: bool) -> Evaluated:
    _stop(run)
    model = open_model(cfg, data, node, copy=copy).to(run.device)
    digest = model.digest()
    loader = data.loader(cfg.split, cfg.eval_batch_size, train=False, size=model.canvas)
    precision = cfg.engine.precision
    file = class_path(run.cache, model, loader, precision)
    options: dict[str, Any] = {"precision": precision, "keep_logits": cfg.keep_logits}
    predictions = predict_classes(model, loader, run.cache, stopped=partial(_stop, run), **options)
    loader.close()
    return Evaluated(model.to("meta"), digest, predictions._replace(logits=None), file)


def lock_file(cfg: DictConfig, run: Run, name: str, node: Any) -> Path:
    """What a process holds while it has a network in work."""
    identity = json.dumps([name, to_dict(node), cfg.split, to_dict(cfg.dataset), cfg.engine.precision], default=str)
    return run.cache / "predictions" / "in-work" / f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}.lock"


def _stop(run: Run) -> None:
    """Interrupted between two networks if a signal asked for it; what was evaluated is kept."""
    if signal := run.stop_requested():
        raise Interrupted(signal)
