"""The first stage: local models of the source, masks of all positions at once, statistics of the module's own."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from recombine.engine.evaluate import autocast
from recombine.pnc.clone.batchnorm import recalibrate
from recombine.pnc.clone.branch import Branch
from recombine.pnc.clone.candidates import Candidates
from recombine.pnc.clone.masks import harden
from recombine.pnc.local.neighbourhood import Neighbourhood
from recombine.pnc.local.surrogates import LimeModels, Local, Refitted
from recombine.pnc.training import Localization
from recombine.pnc.workbench import Workbench

if TYPE_CHECKING:
    from recombine.pnc.cloning import Cloning

__all__ = ["hand_on", "localize"]


def localize(bench: Workbench, method: Cloning, net: Candidates, near: Neighbourhood) -> Local | None:
    """Stage 1: learn the masks of all positions at once (eq. 6); the local models, for the second stage."""
    local = _local_models(bench, method, near) if method.surrogate == "lime" and method.mask == "learned" else None
    if method.mask == "learned" and any(len(branch.gates) for branch in net.branches):
        _learn_masks(bench, method, net, near, local)
    if method.bn_recalibrate:
        _recalibrate(bench, net)
    return local


def _local_models(bench: Workbench, method: Cloning, near: Neighbourhood) -> Local:
    if near.refit:
        columns = torch.tensor(bench.outputs, device=bench.run.device)
        return Refitted(bench.source.net, columns, near, bench.run.seed)
    size = bench.cfg.eval_batch_size
    every = bench.clone_loader(size, train=False)
    if method.use_complement:
        every, _ = bench.contrast_loader(size, train=False)
    precision = bench.cfg.engine.precision
    return LimeModels.fit(bench.source, every, bench.outputs, near, bench.run.seed, precision=precision)


def _learn_masks(bench: Workbench, method: Cloning, net: Candidates, near: Neighbourhood, local: Local | None) -> None:
    size, cloned = bench.cfg.batch_size, None
    if method.use_complement:
        loader, cloned = bench.contrast_loader(size, augment=near.refit)
    else:
        loader = bench.clone_loader(size, augment=near.refit)
    loader = bench.long_enough(loader, method.localize_epochs, method.min_steps)
    steps = math.ceil(method.localize_epochs * len(loader))
    largest = max(net.branches, key=lambda branch: len(branch.groups))
    options = {"branches": net.branches if method.per_position else [largest], "cloned": cloned, "steps": steps}
    options |= {"keep_ratio": method.keep_ratio, "anneal": method.anneal}
    options |= {"seed": bench.run.seed, "score_lr": method.score_lr}
    bench.fit(Localization(net, near, local, **options), loader, "localize", method.localize_epochs)
    if not method.per_position:
        hand_on(largest, net.branches)
    harden([gate for branch in net.branches for gate in branch.gates], method.keep_ratio)


def hand_on(largest: Branch, branches: Iterable[Branch]) -> None:
    """Give the other branches the scores that the largest has learned for their layers."""
    scores = {group.name: gate.scores.data for group, gate in zip(largest.groups, largest.gates, strict=True)}
    for branch in branches:
        for group, gate in zip(branch.groups, branch.gates, strict=True):
            gate.scores.data.copy_(scores[group.name])


def _recalibrate(bench: Workbench, net: Candidates) -> None:
    """Give the masked layers of every branch the statistics of images of cloned classes (section 4.6)."""

    def through(images: Tensor) -> None:
        with autocast(bench.cfg.engine.precision, images.device):
            net.of_modules(bench.source.preprocess(images))

    norms = [norm for branch in net.branches for norm in branch.norms()]
    recalibrate(norms, through, bench.clone_loader(bench.cfg.batch_size))
