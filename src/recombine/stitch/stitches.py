"""From two parents to a trained supernetwork: match, join, train, keep for the next search."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from recombine.core.distributed import gather
from recombine.core.errors import ConfigError
from recombine.core.files import replacing, write_atomically
from recombine.engine.engine import Engine
from recombine.models.freeze import digest
from recombine.run.config import build, plain
from recombine.stitch.init import initialise
from recombine.stitch.layers import compatible
from recombine.stitch.matching import MatchingProblem, match
from recombine.stitch.parents import Parent
from recombine.stitch.settings import MatchingSettings, StitchMethodSettings
from recombine.stitch.supernetwork import StitchPoint, Supernetwork
from recombine.stitch.training import StitchTraining
from recombine.stitch.workbench import Workbench

__all__ = ["join", "matching_problem", "train"]

log = logging.getLogger(__name__)


def matching_problem(parents: tuple[Parent, Parent]) -> MatchingProblem:
    """Which nodes of two parents can be stitched, and the graphs between them (section 3)."""
    shapes = [[(p.layout(node), tuple(node.meta["shape"])) for node in p.nodes] for p in parents]
    fits = np.array([[compatible(*a, *b) for b in shapes[1]] for a in shapes[0]], bool)
    edges = [np.array(p.edges(p.nodes), int).reshape(-1, 2) for p in parents]
    return MatchingProblem(fits.reshape(len(shapes[0]), len(shapes[1])), *edges)


def join(bench: Workbench) -> tuple[Supernetwork, dict[str, float]]:
    """The supernetwork of all nodes that match, its stitches drawn from `stitch_seed`, and facts of the matching.

    The pairs are kept in the run's folder: where the matching ends by its time limit, another try may end elsewhere.
    """
    granularity = bench.cfg.matching.granularity
    parents = tuple(Parent(model, granularity) for model in bench.models)
    file = bench.run.dir / "matching.json"
    found = json.loads(file.read_text()) if file.is_file() else gather(_matched(bench, parents))[0]
    if bench.run.main:
        write_atomically(file, json.dumps(found, indent=1))
    named = [{node.name: node for node in parent.nodes} for parent in parents]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(bench.training_run.seed)
        net = Supernetwork(parents, [StitchPoint(named[0][a], named[1][b]) for a, b in found["pairs"]])
    layout = torch.channels_last if bench.cfg.engine.channels_last else torch.contiguous_format
    facts = {"pairs": len(net.pairs), "pairs_bound": found["bound"], "pairs_proven": found["proven"]}
    facts |= {"stitch_parameters": sum(p.numel() for p in net.stitches.parameters())}
    more = " (no more are possible)" if found["proven"] else ""
    log.info("%s: %d pairs of nodes joined%s", net.name, len(net.pairs), more)
    return net.to(bench.run.device, memory_format=layout), {key: float(value) for key, value in facts.items()}


def _matched(bench: Workbench, parents: tuple[Parent, Parent]) -> dict[str, Any]:
    """The names of the matched nodes, and how many there could be at most."""
    a, b = (parent.name for parent in parents)
    if not all(parent.nodes for parent in parents) or not (problem := matching_problem(parents)).compatible.any():
        raise ConfigError(
            f"no node of {a} can be stitched with one of {b}: nowhere are feature maps of one size; take networks that "
            f"shrink their images alike, or matching.granularity=op"
        )
    found = match(problem, MatchingSettings.of(plain(bench.cfg.matching), "matching"), seed=bench.training_run.seed)
    pairs = [(parents[0].nodes[i].name, parents[1].nodes[j].name) for i, j in found.pairs.tolist()]
    return {"pairs": pairs, "bound": found.bound, "proven": found.proven}


def train(bench: Workbench, net: Supernetwork, method: StitchMethodSettings) -> dict[str, float]:
    """Train all stitches, or take those that a run with the same parents, settings and images has left."""
    loader = bench.training_loader(bench.cfg.batch_size)
    path = _place(bench, net, method, loader.digest)
    if path.is_file() and _known(net, path):
        log.info("the stitches of %s were trained before: %s", net.name, path)
        return {}
    initialise(net, method.init, loader, method.init_images)
    engine = Engine(bench.cfg.engine, bench.training_run)
    fit = engine.fit(StitchTraining(net), loader, build(bench.cfg.optimizer), build(bench.cfg.schedule), name="stitch")
    if bench.run.main:
        with replacing(path) as temporary:
            state = {key: value.detach().cpu().contiguous() for key, value in net.stitches.state_dict().items()}
            save_file(state, temporary)
    return {"stitch_seconds": fit.seconds}


def _place(bench: Workbench, net: Supernetwork, method: StitchMethodSettings, data: str) -> Path:
    """A file name that is a function of everything the trained stitches depend on."""
    cfg = plain(bench.cfg)
    nodes = [[pair.a.name, pair.b.name] for pair in net.pairs]
    keys = ("optimizer", "schedule", "batch_size", "stitch_seed")
    engine = {
        key: cfg["engine"].get(key)
        for key in ("epochs", "max_steps", "precision", "grad_accum_steps", "grad_clip_norm", "ema_decay")
    }
    facts = {"network": digest(net), "pairs": nodes, "data": data, "augment": cfg["dataset"].get("augment")}
    facts |= {"method": vars(method), "engine": engine} | {key: cfg[key] for key in keys}
    name = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:32]
    return bench.run.cache / "stitches" / f"{name}.safetensors"


def _known(net: Supernetwork, path: Path) -> bool:
    try:
        net.stitches.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        log.warning("kept stitches %s are trained again: %s", path, error)
        return False
    return True
