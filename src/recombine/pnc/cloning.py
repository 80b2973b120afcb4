"""How a clone is learned: localize, insert at every position, select one, cut it out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import closing
from typing import NamedTuple

import torch
from torch import Tensor

from recombine.core.errors import ConfigError
from recombine.core.types import Loader
from recombine.engine.engine import Fit
from recombine.engine.evaluate import autocast
from recombine.models import Model
from recombine.models.channels import channel_groups
from recombine.models.graph import Traced, trace
from recombine.pnc.clone.adapters import LeastSquares
from recombine.pnc.clone.batchnorm import recalibrate
from recombine.pnc.clone.branch import Branch, find_linear_head
from recombine.pnc.clone.candidates import Candidates
from recombine.pnc.clone.masks import harden, set_keep_ratio, share_budget
from recombine.pnc.clone.part import Clone
from recombine.pnc.clone.positions import Position, find_positions
from recombine.pnc.data import CloneData, repeat_for_steps
from recombine.pnc.evaluation import evaluate_module, list_masks, measure_bytes, similarity_by_class
from recombine.pnc.evaluator import Evaluator
from recombine.pnc.local.neighbourhood import Neighbourhood
from recombine.pnc.local.surrogates import LimeModels, LocalModels, RefittedLimeModels
from recombine.pnc.method_settings import CloningSettings
from recombine.pnc.search import score_positions, select_position
from recombine.pnc.stages import Insertion, Localization
from recombine.pnc.trainer import Trainer

__all__ = [
    *("LearnedClone", "build_candidates", "insert", "learn_clone", "localize", "share_scores", "start_adapters"),
]

ADAPTER_SAMPLES = 512
"""Images of cloned classes from which a least-squares adapter starts; ours."""


class LearnedClone(NamedTuple):
    """A clone, and how it came about."""

    clone: Clone
    metrics: dict[str, float]
    series: dict[str, list]
    curve: dict[str, list]
    """Scores of all positions."""
    labels: list[str]
    """Of the positions."""
    selected: int


def learn_clone(
    target: Model, source: Model, data: CloneData, method: CloningSettings, trainer: Trainer, evaluator: Evaluator
) -> LearnedClone:
    """Localize, insert at every position, select one, cut the clone out."""
    net = build_candidates(target, source, data, method, trainer.seed)
    local, metrics = localize(net, data, method, evaluator.neighbourhood, trainer)
    fit = insert(net, data, method, evaluator.neighbourhood, local, trainer)
    curve = score_positions(net, data, evaluator)
    best = select_position(method.search, curve[method.search.metric])
    clone, position = Clone(net.branches[best], data.class_names), net.branches[best].position
    metrics |= evaluate_module(net, best, data, evaluator) | clone.count_parameters() | data.count_samples()
    metrics |= {"position": float(position.number), "source_position": float(position.source_number)}
    metrics |= {"insert_seconds": fit.seconds, "fit_seconds": fit.seconds, **measure_bytes(target, source, clone)}
    if "similarity" in curve:
        metrics["similarity_inserted"] = curve["similarity"][best]
    series = {f"search_{key}": values for key, values in curve.items()} | list_masks(net, best)
    series |= similarity_by_class(net, best, data, evaluator)
    labels = [branch.position.label for branch in net.branches]
    return LearnedClone(clone, metrics, series, curve, labels, best)


# ------------------------------------------------------------------------------------------------ candidates


def build_candidates(target: Model, source: Model, data: CloneData, method: CloningSettings, seed: int) -> Candidates:
    """A branch at each candidate position, drawn from `seed`; ConfigError for positions that are not there."""
    graphs = trace(target.net, target.size), trace(source.net, source.size)
    head, device = method.select_head(data.use_target_data), next(target.parameters()).device
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        branches = [
            _build_branch(graphs, source, data.outputs, position, method, head)
            for position in _list_positions(*graphs, method)
        ]
    return Candidates(target, source, graphs, branches).to(device)


def _list_positions(target: Traced, source: Traced, method: CloningSettings) -> Sequence[Position]:
    there = find_positions(target, source, method.align)
    if method.positions == "last":
        maskable = [position for position in there if channel_groups(source, after=position.source.node)]
        return maskable[-1:] or there[1:]
    known = sorted({position.number for position in there})
    chosen = known[1:] if method.positions is None else method.positions
    if wrong := sorted(set(chosen) - set(known)):
        raise ConfigError(f"method.positions={list(chosen)}: {wrong} are none; there are {known}")
    return [position for position in there if position.number in chosen]


def _build_branch(
    graphs: tuple[Traced, Traced],
    source: Model,
    outputs: Sequence[int],
    position: Position,
    method: CloningSettings,
    head: str,
) -> Branch:
    kinds = {"adapter": method.adapter, "head": head}
    classifier = find_linear_head(graphs[0])
    branch = Branch(position, graphs[1], outputs, classifier, **kinds, recalibrated=method.bn_recalibrate)
    if method.scope == "global":
        share_budget(branch.channel_masks)
    for mask in branch.channel_masks:
        mask.set_kind(method.mask_kind)
    for group, mask in zip(branch.groups, branch.channel_masks, strict=True):
        if method.mask == "random":
            mask.scores.data.uniform_()
        if method.mask == "magnitude":
            mask.scores.data.copy_(source.net.get_submodule(group.name).weight.detach().flatten(1).abs().mean(1))
    set_keep_ratio(branch.channel_masks, 1.0 if method.mask in ("learned", "ones") else method.keep_ratio)
    return branch


# ---------------------------------------------------------------------------------------------- localization


def localize(
    net: Candidates, data: CloneData, method: CloningSettings, neighbourhood: Neighbourhood, trainer: Trainer
) -> tuple[LocalModels | None, dict[str, float]]:
    """Stage 1: learn the masks of all positions at once, eq. (6); returns the local models and metrics."""
    metrics: dict[str, float] = {}
    local = None
    if method.surrogate == "lime" and method.mask == "learned":
        local = _fit_local_models(net.source, data, method, neighbourhood, trainer)
    if method.mask == "learned" and any(len(branch.channel_masks) for branch in net.branches):
        metrics["localize_seconds"] = _learn_masks(net, data, method, neighbourhood, local, trainer).seconds
    if method.mask == "learned" and method.use_complement:
        metrics["samples_others"] = float(len(data.other_indices()))
    if method.bn_recalibrate:
        _recalibrate(net, data.cloned_loader(trainer.batch_size, net.source.canvas), trainer.precision)
    return local, metrics


def _fit_local_models(
    source: Model, data: CloneData, method: CloningSettings, neighbourhood: Neighbourhood, trainer: Trainer
) -> LocalModels:
    if neighbourhood.refit:
        columns = torch.tensor(data.outputs, device=trainer.run.device)
        return RefittedLimeModels(source.net, columns, neighbourhood, trainer.seed)
    size = trainer.eval_batch_size
    if method.use_complement:
        loader, _ = data.contrast_loader(size, source, train=False)
    else:
        loader = data.cloned_loader(size, source.canvas, train=False)
    return LimeModels.fit(source, loader, data.outputs, neighbourhood, trainer.seed, precision=trainer.precision)


def _learn_masks(
    net: Candidates,
    data: CloneData,
    method: CloningSettings,
    neighbourhood: Neighbourhood,
    local: LocalModels | None,
    trainer: Trainer,
) -> Fit:
    cloned, augment = None, neighbourhood.refit
    if method.use_complement:
        loader, cloned = data.contrast_loader(trainer.batch_size, net.source, augment=augment)
    else:
        loader = data.cloned_loader(trainer.batch_size, net.source.canvas, augment=augment)
    loader = repeat_for_steps(loader, method.localize_epochs, method.min_steps)
    largest = max(net.branches, key=lambda branch: len(branch.groups))
    stage = Localization(
        *(net, neighbourhood, local),
        branches=net.branches if method.per_position else [largest],
        cloned=cloned,
        steps=math.ceil(method.localize_epochs * len(loader)),
        keep_ratio=method.keep_ratio,
        anneal=method.anneal,
        seed=trainer.seed,
        score_lr=method.score_lr,
    )
    fit = trainer.fit(stage, loader, "localize", method.localize_epochs)
    if not method.per_position:
        share_scores(largest, net.branches)
    harden([mask for branch in net.branches for mask in branch.channel_masks], method.keep_ratio)
    return fit


def share_scores(largest: Branch, branches: Iterable[Branch]) -> None:
    """Give all branches the scores that the largest has learned for their layers."""
    scores = {group.name: mask.scores.data for group, mask in zip(largest.groups, largest.channel_masks, strict=True)}
    for branch in branches:
        for group, mask in zip(branch.groups, branch.channel_masks, strict=True):
            mask.scores.data.copy_(scores[group.name])


def _recalibrate(net: Candidates, loader: Loader, precision: str) -> None:
    """Give the masked layers of every branch the BatchNorm statistics of images of cloned classes."""

    def forward(images: Tensor) -> None:
        with autocast(precision, images.device):
            net.forward_modules(net.source.preprocess(images))

    recalibrate([norm for branch in net.branches for norm in branch.batchnorms()], forward, loader)


# ------------------------------------------------------------------------------------------------- insertion


def insert(
    net: Candidates,
    data: CloneData,
    method: CloningSettings,
    neighbourhood: Neighbourhood,
    local: LocalModels | None,
    trainer: Trainer,
) -> Fit:
    """Stage 2: learn adapters and heads of all positions, refining the masks if they were learned, eq. (9)."""
    if method.adapter_init == "lstsq":
        start_adapters(net, data, trainer.eval_batch_size)
    loader, target_samples = data.joint_loader(trainer.batch_size, net.target)
    loader = repeat_for_steps(loader, method.insert_epochs, method.min_steps)
    stage = Insertion(
        *(net, neighbourhood, local),
        target_samples=target_samples,
        loss=method.insert_loss or ("xe" if target_samples else "match"),
        match_weight=method.match_weight,
        loc_weight=method.loc_weight if method.joint and method.mask == "learned" else 0.0,
        keep_weight=method.keep_weight,
        temperature=method.temperature,
        seed=trainer.seed,
        score_lr=method.score_lr,
    )
    return trainer.fit(stage, loader, "insert", method.insert_epochs)


def start_adapters(net: Candidates, data: CloneData, batch_size: int) -> None:
    """Start every adapter as the best linear map from the target's features to the source's (adapter_init=lstsq)."""
    fits = [LeastSquares(branch.adapter) for branch in net.branches]
    count = math.ceil(ADAPTER_SAMPLES / data.world)
    loader = data.cloned_loader(batch_size, net.target.canvas, train=False)
    seen = 0
    with closing(loader.epoch(0)) as batches:
        for batch in batches:
            images = batch.images[: count - seen]
            values, _, _ = net.forward_target(net.target.preprocess(images))
            goals, _ = net.forward_source(net.source.preprocess(images))
            for fit, value, goal in zip(fits, values, goals, strict=True):
                fit.add(value, goal)
            seen += len(images)
            if seen == count:
                break
    for fit in fits:
        fit.solve()
