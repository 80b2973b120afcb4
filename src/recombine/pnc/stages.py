"""The two stages that learn a clone: which filters (eq. 6), then adapter and head with the masks refined (eq. 9)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from recombine.core.types import Batch, Step
from recombine.engine.method import Method
from recombine.pnc.clone.branch import Branch, FullHead
from recombine.pnc.clone.candidates import Candidates
from recombine.pnc.clone.masks import anneal_keep_ratio, budget_penalty, ramp, set_keep_ratio
from recombine.pnc.local.neighbourhood import Neighbourhood, Purpose, predict_linear
from recombine.pnc.local.segments import Segments
from recombine.pnc.local.surrogates import LocalModels, localization_loss

__all__ = ["Insertion", "Localization", "distillation"]

NEIGHBOURS = 2
"""Blanked neighbours of each image on which the source's logits are matched too."""


def distillation(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(teacher / T) | softmax(student / T)) of each sample, logits [..., C] -> [...]."""
    probabilities = (teacher.detach() / temperature).softmax(-1)
    values = F.kl_div((student / temperature).log_softmax(-1), probabilities, reduction="none")
    return temperature**2 * values.sum(-1)


class _CloneStage(Method):
    """What both stages share: the frozen pair, scores with a rate of their own, the localization loss."""

    frozen = ("net.target", "net.source")

    def __init__(
        self,
        net: Candidates,
        neighbourhood: Neighbourhood,
        surrogates: LocalModels | None,
        *,
        seed: int,
        score_lr: float,
        segments: Segments | None = None,
    ) -> None:
        """`surrogates` None matches the source itself in place of its local models (method.surrogate=direct).

        `segments` of samples that are known; None: they are found in every batch.
        """
        super().__init__(net)
        self.net: Candidates
        self.columns: Tensor
        self.neighbourhood, self.surrogates = neighbourhood, surrogates
        self.segments = segments or neighbourhood.find_segments
        self.seed, self.score_lr, self.epoch = seed, score_lr, 0
        self.register_buffer("columns", torch.tensor(net.branches[0].outputs), persistent=False)
        self.channel_masks = [mask for branch in net.branches for mask in branch.channel_masks]

    def on_epoch(self, epoch: int) -> None:
        """Neighbours are drawn anew every epoch."""
        self.epoch = epoch

    def parameter_groups(self) -> list[dict]:
        """The masks' scores learn at a rate of their own."""
        scores = [mask.scores for mask in self.channel_masks if mask.scores.requires_grad]
        known = {id(score) for score in scores}
        others = [p for p in self.parameters() if p.requires_grad and id(p) not in known]
        groups: list[dict] = [{"params": others}, {"params": scores, "lr": self.score_lr, "weight_decay": 0.0}]
        return [group for group in groups if group["params"]]

    def localization(self, images: Tensor, index: Tensor) -> Tensor:
        """Eq. (6) for samples [B], summed over the branches whose masks learn, 0-d."""
        neighbourhood, columns = self.neighbourhood, self.columns
        view = neighbourhood.view(images, self.net.source.preprocess, self.segments(index, images))
        vectors = neighbourhood.draw((self.seed, self.epoch, Purpose.TRAIN), index, neighbourhood.num_train, view)
        blanked = neighbourhood.blank(view, vectors)
        branches = list(enumerate(self.net.branches))
        learning = tuple(k for k, each in branches if any(mask.scores.requires_grad for mask in each.channel_masks))
        if self.surrogates is None:
            every, logits = self.net.forward_source(blanked)
            values = [every[k] for k in learning]
            goals = neighbourhood.outputs(logits, columns).unflatten(0, vectors.shape[:2])
        else:
            values = self.net.forward_entries(blanked, learning)
            goals = predict_linear(self.surrogates(index, view), vectors)
        total = images.new_zeros((), dtype=torch.float32)
        for k, value in zip(learning, values, strict=True):
            outputs = neighbourhood.outputs(self.net.branches[k].upper(value)[1], columns)
            weights = neighbourhood.weights(vectors, view.counts)
            total = total + localization_loss(outputs.unflatten(0, vectors.shape[:2]), goals, weights)
        return total


class Localization(_CloneStage):
    """Stage 1: which filters of the source act in the neighbourhood of the cloned samples, for every position."""

    def __init__(
        self,
        net: Candidates,
        *args,
        branches: Sequence[Branch],
        cloned: int | None,
        steps: int,
        keep_ratio: float,
        anneal: bool,
        **options,
    ) -> None:
        """Learns the masks of `branches`, of which one at least has masks.

        `cloned`: how many samples of a batch, the first ones, are of cloned classes; None if all are. The others, if
        any, make the second term of eq. (3). `steps` of this stage, over which the budget falls to `keep_ratio`, or
        the penalty that holds soft masks to it rises.
        """
        super().__init__(net, *args, **options)
        self.cloned, self.steps, self.keep_ratio, self.anneal = cloned, steps, keep_ratio, anneal
        for branch in net.branches:
            branch.requires_grad_(False)
        self.channel_masks = [mask for branch in branches for mask in branch.channel_masks]
        for mask in self.channel_masks:
            mask.scores.requires_grad_(True)
        self.soft = self.channel_masks[0].kind != "topk_ste"
        self.pressure: Tensor
        self.register_buffer("pressure", torch.ones(()))
        self.after_update(-1)

    def forward(self, batch: Batch) -> Step:
        """Eq. (6) of a batch, and of its samples of other classes on the same outputs if there are any."""
        loss = self.localization(batch.images[: self.cloned], batch.index[: self.cloned])
        logs = {"localization": loss.detach()}
        if self.cloned is not None:
            others = self.localization(batch.images[self.cloned :], batch.index[self.cloned :])
            loss, logs["others"] = loss + others, others.detach()
        if self.soft:
            penalty = budget_penalty(self.channel_masks, self.keep_ratio)
            loss, logs["penalty"] = loss + self.pressure * penalty, penalty.detach()
        return Step(loss, {"loss": loss.detach(), **logs})

    def after_update(self, step: int) -> None:
        """Lower the budget, or raise the penalty."""
        if self.soft:
            self.pressure.fill_(ramp(step + 1, self.steps) if self.anneal else 1.0)
        keep = (
            anneal_keep_ratio(step + 1, self.steps, self.keep_ratio)
            if self.anneal and not self.soft
            else self.keep_ratio
        )
        set_keep_ratio(self.channel_masks, keep)


class Insertion(_CloneStage):
    """Stage 2: adapter and head, and with them the masks: L_ins + weight L_loc, for every position, eq. (9)."""

    def __init__(
        self,
        net: Candidates,
        *args,
        target_samples: int,
        refine: bool,
        loss: str,
        match_weight: float,
        loc_weight: float,
        keep_weight: float,
        temperature: float,
        **options,
    ) -> None:
        """The first `target_samples` of every batch are the target's own, the others those of cloned classes.

        `refine` the masks, by L_ins and `loc_weight` times L_loc. `loss`: xe (cross entropy over old and new classes),
        match (the source's logits of the cloned classes, times `match_weight`) or both. `keep_weight` of T^2 KL to the
        target on its own samples: for heads that can change its logits.
        """
        super().__init__(net, *args, **options)
        self.target_samples, self.loss, self.match_weight = target_samples, loss, match_weight
        self.loc_weight, self.keep_weight, self.temperature = loc_weight * refine, keep_weight, temperature
        self.changeable = any(isinstance(branch.head, FullHead) for branch in net.branches)
        for branch in net.branches:
            branch.requires_grad_(True)
        for mask in self.channel_masks:
            mask.scores.requires_grad_(refine)

    def forward(self, batch: Batch) -> Step:
        """L_ins of every branch, summed, and what refines the masks."""
        cloned, index = batch.images[self.target_samples :], batch.index[self.target_samples :]
        losses = torch.zeros(len(self.net.branches), device=cloned.device)
        if self.loss != "match":
            losses = losses + self.cross_entropy(batch)
        if self.loss != "xe":
            losses = losses + self.match_weight * self.matching(cloned, index)
        loss = losses.sum()
        logs = {f"loss_{b.position.label}": v.detach() for b, v in zip(self.net.branches, losses, strict=True)}
        if self.loc_weight and self.channel_masks:
            localization = self.localization(cloned, index)
            loss, logs["localization"] = loss + self.loc_weight * localization, localization.detach()
        return Step(loss, {"loss": loss.detach(), **logs})

    def cross_entropy(self, batch: Batch) -> Tensor:
        """Cross entropy over old and new classes, and what is forgotten of the old ones, [P]."""
        logits = self.net(batch.images)
        labels = batch.labels[:, None].expand(-1, logits.shape[1])
        losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels).mean(0)
        if self.changeable and self.keep_weight and self.target_samples:
            losses = losses + self.keep_weight * self.forgetting(batch.images[: self.target_samples], logits)
        return losses

    def matching(self, images: Tensor, index: Tensor) -> Tensor:
        """Mean squared distance of the new logits to the source's, on samples and their blanked neighbours, [P]."""
        address, net, near = (self.seed, self.epoch, Purpose.INSERT), self.net, self.neighbourhood
        labels = self.segments(index, images)
        views = [near.view(images, model.preprocess, labels) for model in (net.target, net.source)]
        vectors = near.draw(address, index, 1 + NEIGHBOURS, views[0])  # the first blanks nothing
        whole, theirs = (near.blank(view, vectors) for view in views)
        goals = net.forward_source(theirs)[1][:, self.columns]
        logits = net.forward_normalized(whole)[:, :, -len(self.columns) :]
        return (logits - goals[:, None]).square().mean((0, 2))

    def forgetting(self, images: Tensor, logits: Tensor) -> Tensor:
        """How far each branch's old logits are from the target's on its own samples, [P]."""
        teacher = self.net.forward_target(self.net.target.preprocess(images))[2]
        student = logits[: self.target_samples, :, : teacher.shape[1]]
        return distillation(teacher[:, None].expand_as(student), student, self.temperature).mean(0)
