"""From two parents to a trained supernetwork: match, join, train, keep for the next search."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recombine.core.distributed import gather
from recombine.core.errors import ConfigError, DamagedError, WriteError
from recombine.core.files import read_json, read_tensors, write_json, write_tensors
from recombine.core.settings import to_dict
from recombine.core.types import Loader
from recombine.engine.engine import Engine
from recombine.engine.evaluate import resolve
from recombine.engine.method import Method
from recombine.models import Model
from recombine.models.freeze import digest
from recombine.run.config import DictConfig, build
from recombine.run.run import Run
from recombine.stitch.ensemble import Mean
from recombine.stitch.joint_training import JointTraining
from recombine.stitch.layers import compatible
from recombine.stitch.matching import MatchingProblem, match
from recombine.stitch.parents import Parent
from recombine.stitch.settings import MatchingSettings, StitchMethodSettings
from recombine.stitch.stitch_init import initialise
from recombine.stitch.supernetwork import StitchPoint, Supernetwork
from recombine.stitch.training import StitchTraining

__all__ = ["join", "matching_problem", "train_stitches"]

log = logging.getLogger(__name__)
SHARE = "share"
"""Key of the ensemble's weight beside the stitches."""


def matching_problem(parents: tuple[Parent, Parent], *, resize: bool = False) -> MatchingProblem:
    """The nodes of two parents that may be joined, and the graphs between them; `resize` as in `compatible`."""
    shapes = [[(str(parent.layout(node)), tuple(node.meta["shape"])) for node in parent.nodes] for parent in parents]
    fits = [[compatible(*a, *b, resize=resize) for b in shapes[1]] for a in shapes[0]]
    edges = [np.array(parent.edges(parent.nodes), int).reshape(-1, 2) for parent in parents]
    return MatchingProblem(np.array(fits, np.bool_).reshape(len(shapes[0]), len(shapes[1])), *edges)


def join(
    models: tuple[Model, Model],
    settings: MatchingSettings,
    run: Run,
    *,
    channels_last: bool,
    ensemble: Mean = "logits",
) -> tuple[Supernetwork, dict[str, float]]:
    """The supernetwork of all nodes that match, its stitches drawn from the seed of `run`, and metrics of the matching.

    The pairs are kept in the run's folder: where the matching ends by its time limit, another try may end elsewhere.
    """
    parents = (Parent(models[0], settings.granularity), Parent(models[1], settings.granularity))
    file = run.dir / "matching.json"
    found = _kept(file) or gather(_match(parents, settings, run.seed))[0]
    if run.main:
        write_json(file, found)
    a, b = ({node.name: node for node in parent.nodes} for parent in parents)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(run.seed)
        points = [StitchPoint(a[name_a], b[name_b]) for name_a, name_b in found["pairs"]]
        net = Supernetwork(parents, points, ensemble)
    metrics = {"pairs": len(net.pairs), "pairs_bound": found["bound"], "pairs_proven": found["proven"]}
    metrics |= {"stitch_parameters": sum(p.numel() for p in net.stitches.parameters())}
    more = " (no more are possible)" if found["proven"] else ""
    log.info("%s: %d pairs of nodes joined%s", net.name, len(net.pairs), more)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return net.to(run.device).to(memory_format=layout), {key: float(value) for key, value in metrics.items()}


def _kept(file: Path) -> dict[str, Any] | None:
    """The matching that an earlier session found."""
    try:
        return read_json(file) if file.exists() else None
    except DamagedError as error:
        log.warning("nodes are matched again: %s", error)
        return None


def _match(parents: tuple[Parent, Parent], settings: MatchingSettings, seed: int) -> dict[str, Any]:
    """The names of the matched nodes, and how many there could be at most."""
    a, b = parents
    problem = matching_problem(parents, resize=settings.resize) if a.nodes and b.nodes else None
    if problem is None or not problem.compatible.any():
        raise ConfigError(
            f"no node of {a.name} can be stitched with one of {b.name}: nowhere are feature maps of one size; take "
            f"networks that shrink their images alike, matching.granularity=op, or matching.resize=true"
        )
    found = match(problem, settings, seed=seed)
    pairs = [(a.nodes[i].name, b.nodes[j].name) for i, j in found.pairs.tolist()]
    return {"pairs": pairs, "bound": found.bound, "proven": found.proven}


def train_stitches(net: Supernetwork, loader: Loader, cfg: DictConfig, run: Run) -> dict[str, float]:
    """Train all stitches, or load those that a run with the same parents, settings and images has trained."""
    method: StitchMethodSettings = build(cfg.method)
    path = run.cache / "stitches" / f"{_cache_key(net, method, loader, to_dict(cfg), run.device)}.safetensors"
    if path.is_file() and _load(net, path):
        log.info("the stitches of %s were trained before: %s", net.name, path)
        return {}
    initialise(net, method.init, loader, method.init_images)
    seconds = 0.0
    if method.loss != "none":
        optimizer, schedule = build(cfg.optimizer), build(cfg.schedule)
        seconds = (
            Engine(cfg.engine, run).fit(_training(net, method), loader, optimizer, schedule, name="stitch").seconds
        )
    if run.main:
        try:
            state = net.stitches.state_dict() | {SHARE: net.ensemble.share.detach()}
            write_tensors(path, state, {})
        except WriteError as error:
            log.warning("stitches are not kept for other runs: %s", error)
    return {"stitch_seconds": seconds}


def _training(net: Supernetwork, method: StitchMethodSettings) -> Method:
    """What trains the stitches."""
    if method.loss == "features":
        return StitchTraining(net)
    return JointTraining(net, method.loss, method.sampled_offspring, method.sampled_stitches, method.learn_share)


def _cache_key(
    net: Supernetwork, method: StitchMethodSettings, loader: Loader, cfg: dict[str, Any], device: torch.device
) -> str:
    """A digest of everything that the trained stitches depend on."""
    engine_keys = ("epochs", "max_steps", "grad_accum_steps", "grad_clip_norm", "ema_decay")
    identity = {
        "network": digest(net),
        "pairs": [[pair.a.name, pair.b.name] for pair in net.pairs],
        "data": loader.digest,
        "augment": cfg["dataset"].get("augment"),
        "method": vars(method),
        "engine": {key: cfg["engine"].get(key) for key in engine_keys},
        "precision": resolve(cfg["engine"]["precision"], device),
        **{key: cfg[key] for key in ("optimizer", "schedule", "batch_size", "stitch_seed")},
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _load(net: Supernetwork, path: Path) -> bool:
    """Load trained stitches; False if the file is damaged."""
    try:
        state = read_tensors(path)[0]
        share = state.pop(SHARE)
        net.stitches.load_state_dict(state)
        net.ensemble.share.data.copy_(share)
    except (DamagedError, RuntimeError, KeyError) as error:
        log.warning("kept stitches are trained again: %s", error)
        return False
    return True
