"""Which branches take part: one at each candidate position, and the probe's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from recombine.core.errors import ConfigError
from recombine.models.graph import Traced, trace
from recombine.pnc.clone.branch import GRANULARITIES, Branch, find_linear_head
from recombine.pnc.clone.candidates import Candidates
from recombine.pnc.clone.masks import share_budget
from recombine.pnc.clone.positions import Position, clones_layers, find_positions, find_probe
from recombine.pnc.clone_task import CloneTask
from recombine.pnc.method_settings import CloningSettings

__all__ = ["build_candidates"]


def build_candidates(task: CloneTask, method: CloningSettings) -> Candidates:
    """A branch at each candidate position and at the probe's; ConfigError for positions that are not there."""
    target, source, data = task.target, task.source, task.data
    graphs = trace(target.net, target.size), trace(source.net, source.size)
    head, device = method.select_head(data.use_target_data), next(target.parameters()).device
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(task.trainer.seed)
        branches = [
            _build_branch(graphs, task, position, method, head) for position in _list_positions(graphs, task, method)
        ]
    return Candidates(target, source, graphs, branches).to(device)


def _list_positions(graphs: tuple[Traced, Traced], task: CloneTask, method: CloningSettings) -> Sequence[Position]:
    """The candidates, and the probe's."""
    target, source = graphs
    probe = find_probe(target, source)
    there = [position for position in find_positions(target, source, method.align) if clones_layers(source, position)]
    known = sorted({position.number for position in there})
    if not known[1:] and method.positions is None:
        raise ConfigError(
            f"{task.target.name} and {task.source.name} share no position above which a layer of the source could be "
            f"cloned; method.positions=[0] clones it whole, method=probe measures a linear probe"
        )
    if method.positions == "last":
        find, streams = GRANULARITIES[method.granularity].groups, method.residual == "stage"
        maskable = [each for each in there if find(source, after=each.source.node, streams=streams)]
        return [*maskable[-1:], probe]
    candidates = known[1:] if method.positions is None else method.positions
    if wrong := sorted(set(candidates) - set(known)):
        probes = f"; at {probe.number} no layer is cloned, which is a linear probe: method=probe"
        raise ConfigError(
            f"method.positions={list(candidates)}: {wrong} are none; there are {known}"
            + (probes if probe.number in wrong else "")
        )
    return [*(position for position in there if position.number in candidates), probe]


def _build_branch(
    graphs: tuple[Traced, Traced], task: CloneTask, position: Position, method: CloningSettings, head: str
) -> Branch:
    probe = not clones_layers(graphs[1], position)
    kinds: dict[str, Any] = {
        "adapter": "conv1x1" if probe else method.adapter,
        "head": head,
        "recalibrated": method.bn_recalibrate,
        "residual": method.residual,
        "granularity": method.granularity,
        "mask_input": method.mask_input and not probe,
    }
    branch = Branch(position, graphs[1], task.data.outputs, find_linear_head(graphs[0]), **kinds)
    if method.scope == "global":
        share_budget(branch.channel_masks)
    for mask in branch.channel_masks:
        mask.set_kind(method.mask_kind)
    return branch
