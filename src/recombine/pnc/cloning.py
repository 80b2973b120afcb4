"""How a clone is learned: localize, insert at every position, select one, finish it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import closing
from copy import deepcopy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from recombine.core.types import Loader
from recombine.engine.engine import Fit
from recombine.engine.evaluate import autocast
from recombine.pnc.branches import build_candidates
from recombine.pnc.clone.adapters import LeastSquares
from recombine.pnc.clone.batchnorm import recalibrate
from recombine.pnc.clone.branch import Branch
from recombine.pnc.clone.masks import ChannelMask, harden, order_scores, set_keep_ratio
from recombine.pnc.clone.part import Clone
from recombine.pnc.clone_task import CloneTask
from recombine.pnc.data import repeat_for_steps
from recombine.pnc.evaluation import evaluate_module, list_masks, measure_bytes, similarity_by_class
from recombine.pnc.importance import filter_norms, gradient_scores
from recombine.pnc.local.segments import KnownSegments
from recombine.pnc.local.surrogates import LimeModels, LocalModels, RefittedLimeModels
from recombine.pnc.method_settings import CloningSettings
from recombine.pnc.search import score_positions, score_similarity, select_position
from recombine.pnc.stages import Insertion, Localization

__all__ = ["Cloning", "LearnedClone", "learn_clone", "share_scores"]


class LearnedClone(NamedTuple):
    """A clone, and how it came about."""

    clone: Clone
    probe: Clone
    """What takes its place where nothing of the source but its classifier is used, trained alike."""
    metrics: dict[str, float]
    series: dict[str, list]
    curve: dict[str, list]
    """Scores of all positions on the images kept for selection."""
    labels: list[str]
    """Of the positions."""
    selected: int


def learn_clone(task: CloneTask, method: CloningSettings) -> LearnedClone:
    """Localize, insert at every position, select one on the images kept for it, finish that one and cut it out."""
    cloning = Cloning(task, method)
    ranked = cloning.rank()
    metrics = cloning.localize()
    metrics["insert_seconds"] = metrics["fit_seconds"] = cloning.insert().seconds
    curve, scores = score_positions(task, cloning.net)
    if method.search.metric == "similarity":
        curve["similarity"] = score_similarity(task, cloning.net)
    best = select_position(curve[method.search.metric])
    labels = [branch.position.label for branch in cloning.net.positions]
    cloning.finish(best)
    clone, probe = (Clone(branch, task.data.class_names) for branch in cloning.net.branches)
    metrics |= scores | {f"select_{key}": curve[key][best] for key in curve if key.startswith(("average", "gain"))}
    metrics |= evaluate_module(cloning.net, 0, task) | clone.count_parameters() | task.data.count_samples()
    metrics |= {"position": float(clone.position.number), "source_position": float(clone.position.source_number)}
    metrics |= measure_bytes(task.target, task.source, clone)
    if task.evaluator.similarity is not None:
        (metrics["similarity_inserted"],) = score_similarity(task, cloning.net)
    series = {f"search_{key}": values for key, values in curve.items()} | list_masks(cloning.net, 0) | ranked
    series |= similarity_by_class(cloning.net, 0, task)
    return LearnedClone(clone, probe, metrics, series, curve, labels, best)


ADAPTER_SAMPLES = 512
"""Images of cloned classes from which a least-squares adapter starts; ours."""


class Cloning:
    """A clone in the making: its stages change the branches of `net` in place."""

    def __init__(self, task: CloneTask, method: CloningSettings) -> None:
        self.task, self.method = task, method
        self.data, self.trainer = task.data, task.trainer
        self.neighbourhood = task.evaluator.neighbourhood
        self.net = build_candidates(task, method)
        self.local: LocalModels | None = None
        self.segments: KnownSegments | None = None

    def rank(self) -> dict[str, list]:
        """Keep the candidates that are best before anything is trained; returns the scores of all, if any leave.

        In closed form: the whole source above each position, on the best linear map of the target's features, with the
        head at its start, on the images kept for selection.
        """
        count, net = self.method.search.train, self.net
        if count is None or len(net.positions) <= count:
            return {}
        starts = [deepcopy(branch.adapter) for branch in net.branches]
        self.start_adapters()
        curve, _ = score_positions(self.task, net)
        for branch, start in zip(net.branches, starts, strict=True):
            branch.adapter = start
        best = sorted(range(len(net.positions)), key=lambda k: (curve["average"][k], k))[-count:]
        self.net = net.select(sorted(best))
        return {f"rank_{key}": curve[key] for key in ("position", "source_position", "average")}

    # -------------------------------------------------------------------------------------------- localization

    def localize(self) -> dict[str, float]:
        """Stage 1: choose the filters of all positions at once, learned by eq. (6) or not; returns metrics."""
        method, metrics = self.method, {}
        self._order_filters()
        if self.neighbourhood.segment != "grid" and not self.neighbourhood.refit:
            self.segments = KnownSegments.find(self._once_each(), self.neighbourhood.grid, self.trainer.run.device)
        if method.mask == "learned" and self.masks:
            if method.surrogate == "lime":
                self.local = self._fit_local_models()
            metrics["localize_seconds"] = self._learn_masks().seconds
            if method.use_complement:
                metrics["samples_others"] = float(len(self.data.other_indices()))
        if method.bn_recalibrate:
            self._recalibrate()
        return metrics

    @property
    def masks(self) -> list[ChannelMask]:
        """Of all branches."""
        return [mask for branch in self.net.branches for mask in branch.channel_masks]

    def _order_filters(self) -> None:
        """Order the filters without learning, as the method says; masks that do not learn get their budget."""
        net, method = self.net, self.method
        order = method.mask if method.mask != "learned" else method.mask_start
        if order == "random":
            generator = torch.Generator().manual_seed(self.trainer.seed)
            for mask in self.masks:
                mask.scores.data.copy_(torch.rand(len(mask.scores), generator=generator))
        elif order in ("taylor", "relevance"):
            loader = self.data.cloned_loader(self.trainer.eval_batch_size, net.source.canvas, train=False)
            for branch, scores in zip(net.branches, gradient_scores(net, loader, order), strict=True):
                order_scores(branch.channel_masks, scores)
        elif order == "magnitude":
            for branch in net.branches:
                order_scores(branch.channel_masks, filter_norms(net.source.net, branch))
        set_keep_ratio(self.masks, 1.0 if method.mask in ("learned", "ones") else method.keep_ratio)

    def _fit_local_models(self) -> LocalModels:
        source, outputs, trainer = self.net.source, self.data.outputs, self.trainer
        if self.neighbourhood.refit:
            columns = torch.tensor(outputs, device=trainer.run.device)
            return RefittedLimeModels(source.net, columns, self.neighbourhood, trainer.seed)
        options: dict[str, Any] = {"segments": self.segments, "precision": trainer.precision}
        return LimeModels.fit(source, self._once_each(), outputs, self.neighbourhood, trainer.seed, **options)

    def _once_each(self) -> Loader:
        """The images of the first stage, not augmented."""
        source, size = self.net.source, self.trainer.eval_batch_size
        if self.method.use_complement:
            return self.data.contrast_loader(size, source, train=False)[0]
        return self.data.cloned_loader(size, source.canvas, train=False)

    def _learn_masks(self) -> Fit:
        net, method, trainer = self.net, self.method, self.trainer
        cloned, augment = None, self.neighbourhood.refit
        if method.use_complement:
            loader, cloned = self.data.contrast_loader(trainer.batch_size, net.source, augment=augment)
        else:
            loader = self.data.cloned_loader(trainer.batch_size, net.source.canvas, augment=augment)
        loader = repeat_for_steps(loader, method.localize_epochs, method.min_steps)
        largest = max(net.branches, key=lambda branch: len(branch.groups))
        stage = Localization(
            *(net, self.neighbourhood, self.local),
            branches=net.branches if method.per_position else [largest],
            cloned=cloned,
            steps=math.ceil(method.localize_epochs * len(loader)),
            keep_ratio=method.keep_ratio,
            anneal=method.anneal,
            segments=self.segments,
            seed=trainer.seed,
            score_lr=method.score_lr,
        )
        fit = trainer.fit(stage, loader, "localize", method.localize_epochs)
        if not method.per_position:
            share_scores(largest, net.branches)
        harden(self.masks, method.keep_ratio)
        return fit

    def _recalibrate(self) -> None:
        """Give the masked layers of every branch the BatchNorm statistics of images of cloned classes."""
        net, precision = self.net, self.trainer.precision

        def forward(images: Tensor) -> None:
            with autocast(precision, images.device):
                net.forward_modules(net.source.preprocess(images))

        loader = self.data.cloned_loader(self.trainer.batch_size, net.source.canvas)
        recalibrate([norm for branch in net.branches for norm in branch.batchnorms()], forward, loader)

    # ----------------------------------------------------------------------------------------------- insertion

    def insert(self) -> Fit:
        """Stage 2: learn adapters and heads of all positions, refining the masks if they were learned, eq. (9)."""
        if self.method.adapter_init == "lstsq":
            self.start_adapters()
        return self._insert("insert", self.method.insert_epochs, self.method.min_steps, self.method.refines)

    def finish(self, position: int) -> Fit | None:
        """Stage 3: go on with adapter and head of the selected position and of the probe, the masks fixed."""
        self.net = self.net.select([position])
        if not self.method.final_epochs:
            return None
        return self._insert("finish", self.method.final_epochs, 0, refine=False)

    def _insert(self, name: str, epochs: float, min_steps: int, refine: bool) -> Fit:
        method, trainer = self.method, self.trainer
        loader, target_samples = self.data.joint_loader(trainer.batch_size, self.net.target)
        stage = Insertion(
            *(self.net, self.neighbourhood, self.local),
            target_samples=target_samples,
            refine=refine,
            loss=method.insert_loss or ("xe" if target_samples else "match"),
            match_weight=method.match_weight,
            loc_weight=method.loc_weight,
            keep_weight=method.keep_weight,
            temperature=method.temperature,
            segments=self.segments,
            seed=trainer.seed,
            score_lr=method.score_lr,
        )
        return trainer.fit(stage, repeat_for_steps(loader, epochs, min_steps), name, epochs)

    def start_adapters(self) -> None:
        """Start every adapter as the best linear map from the target's features to the source's."""
        net, seen = self.net, 0
        fits = [None if isinstance(b.adapter, nn.Identity) else LeastSquares(b.adapter) for b in net.branches]
        count = math.ceil(ADAPTER_SAMPLES / self.data.world)
        loader = self.data.cloned_loader(self.trainer.eval_batch_size, net.target.canvas, train=False)
        with closing(loader.epoch(0)) as batches:
            for batch in batches:
                images = batch.images[: count - seen]
                values, _, _ = net.forward_target(net.target.preprocess(images))
                goals, _ = net.forward_source(net.source.preprocess(images))
                for fit, value, goal in zip(fits, values, goals, strict=True):
                    if fit is not None:
                        fit.add(value, goal)
                seen += len(images)
                if seen == count:
                    break
        for fit in filter(None, fits):
            fit.solve()


def share_scores(largest: Branch, branches: Iterable[Branch]) -> None:
    """Give all branches the scores that the largest has learned for their layers."""
    scores = {group.name: mask.scores.data for group, mask in zip(largest.groups, largest.channel_masks, strict=True)}
    for branch in branches:
        for group, mask in zip(branch.groups, branch.channel_masks, strict=True):
            mask.scores.data.copy_(scores[group.name])
