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
from recombine.pnc.clone.masks import ChannelMask, annealed, budget_penalty, ramp, set_keep
from recombine.pnc.local.neighbourhood import Neighbourhood, Purpose, blank, local_value, presence
from recombine.pnc.local.surrogates import Local, localization_loss

__all__ = ["INSERT_LOSSES", "Insertion", "Localization", "distance"]

INSERT_LOSSES = ("xe", "match", "both")
"""Cross entropy over old and new classes; the source's logits of the cloned classes; the sum of the two."""
NEIGHBOURS = 2
"""Blanked neighbours of each image on which the source's logits are matched too (section 5.5)."""


def distance(taught: Tensor, own: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(taught / T) | softmax(own / T)) of each sample, logits [..., C] -> [...]."""
    wanted = (taught.detach() / temperature).softmax(-1)
    values = F.kl_div((own / temperature).log_softmax(-1), wanted, reduction="none")
    return temperature**2 * values.sum(-1)


class _Cloning(Method):
    """What both stages share: the frozen pair, scores with a rate of their own, the localization loss."""

    frozen = ("net.target", "net.source")

    def __init__(
        self,
        net: Candidates,
        neighbourhood: Neighbourhood,
        surrogates: Local | None,
        *,
        seed: int,
        score_lr: float,
    ) -> None:
        """`surrogates` None matches the source itself in place of its local models (loc.surrogate=direct)."""
        super().__init__(net)
        self.neighbourhood, self.surrogates = neighbourhood, surrogates
        self.seed, self.score_lr, self.epoch = seed, score_lr, 0
        self.register_buffer("columns", torch.tensor(net.branches[0].outputs), persistent=False)
        self.gates = [module for module in net.branches.modules() if isinstance(module, ChannelMask)]

    def on_epoch(self, epoch: int) -> None:
        """Neighbours are drawn anew every epoch."""
        self.epoch = epoch

    def parameter_groups(self) -> list[dict]:
        """The masks' scores learn at a rate of their own."""
        scores = [gate.scores for gate in self.gates if gate.scores.requires_grad]
        known = {id(score) for score in scores}
        others = [p for p in self.parameters() if p.requires_grad and id(p) not in known]
        groups = [{"params": others}, {"params": scores, "lr": self.score_lr, "weight_decay": 0.0}]
        return [group for group in groups if group["params"]]

    def localization(self, images: Tensor, index: Tensor) -> Tensor:
        """Eq. (6) for samples [B], summed over the branches whose masks learn, 0-d."""
        near, address = self.neighbourhood, (self.seed, self.epoch, Purpose.TRAIN)
        vectors = presence(address, index, near.num_train, near.patches)
        whole, columns = self.net.source.preprocess(images), self.columns
        values, logits = self.net.of_source(blank(whole, vectors))
        if self.surrogates is None:
            wanted = near.outputs(logits, columns).unflatten(0, vectors.shape[:2])
        else:
            wanted = local_value(self.surrogates(index, whole), vectors)
        total = images.new_zeros((), dtype=torch.float32)
        for branch, value in zip(self.net.branches, values, strict=True):
            if any(gate.scores.requires_grad for gate in branch.gates):
                outputs = near.outputs(branch.upper(value)[1], columns).unflatten(0, vectors.shape[:2])
                total = total + localization_loss(outputs, wanted, near.weights(vectors))
        return total


class Localization(_Cloning):
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
        """Learns the masks of `branches`, of which one at least has some.

        `cloned`: how many samples of a batch, the first ones, are of cloned classes; None if all are. The others, if
        any, make the second term of eq. (3). `steps` of this stage, over which the budget falls to `keep_ratio`, or
        the penalty that holds soft masks to it rises.
        """
        super().__init__(net, *args, **options)
        self.cloned, self.steps, self.keep_ratio, self.anneal = cloned, steps, keep_ratio, anneal
        net.branches.requires_grad_(False)
        self.gates = [gate for branch in branches for gate in branch.gates]
        for gate in self.gates:
            gate.scores.requires_grad_(True)
        self.soft = self.gates[0].kind != "topk_ste"
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
            penalty = budget_penalty(self.gates, self.keep_ratio)
            loss, logs["penalty"] = loss + self.pressure * penalty, penalty.detach()
        return Step(loss, {"loss": loss.detach(), **logs})

    def after_update(self, step: int) -> None:
        """Lower the budget, or raise the penalty."""
        if self.soft:
            self.pressure.fill_(ramp(step + 1, self.steps) if self.anneal else 1.0)
        keep = annealed(step + 1, self.steps, self.keep_ratio) if self.anneal and not self.soft else self.keep_ratio
        set_keep(self.gates, keep)


class Insertion(_Cloning):
    """Stage 2: adapter and head, and with them the masks: L_ins + weight L_loc, for every position (section 5.5)."""

    def __init__(
        self,
        net: Candidates,
        *args,
        originals: int,
        loss: str,
        match_weight: float,
        loc_weight: float,
        keep_weight: float,
        temperature: float,
        **options,
    ) -> None:
        """The first `originals` samples of every batch are the target's own, the others those of cloned classes.

        `loss` is one of INSERT_LOSSES; `match_weight` that of the source's logits in it. `loc_weight` 0 leaves the
        masks as they are (not joint). `keep_weight` of T^2 KL to the target on its own samples: for heads that can
        change its logits.
        """
        super().__init__(net, *args, **options)
        self.originals, self.loss, self.match_weight, self.loc_weight = originals, loss, match_weight, loc_weight
        self.keep_weight, self.temperature = keep_weight, temperature
        self.changeable = any(isinstance(branch.head, FullHead) for branch in net.branches)
        net.branches.requires_grad_(True)
        for gate in self.gates:
            gate.scores.requires_grad_(bool(loc_weight))

    def forward(self, batch: Batch) -> Step:
        """L_ins of every branch, summed, and what refines the masks."""
        cloned, index = batch.images[self.originals :], batch.index[self.originals :]
        losses = torch.zeros(len(self.net.branches), device=cloned.device)
        if self.loss != "match":
            losses = losses + self.classified(batch)
        if self.loss != "xe":
            losses = losses + self.match_weight * self.matched(cloned, index)
        loss = losses.sum()
        logs = {f"loss_{b.position.label}": v.detach() for b, v in zip(self.net.branches, losses, strict=True)}
        if self.loc_weight and self.gates:
            localization = self.localization(cloned, index)
            loss, logs["localization"] = loss + self.loc_weight * localization, localization.detach()
        return Step(loss, {"loss": loss.detach(), **logs})

    def classified(self, batch: Batch) -> Tensor:
        """Cross entropy over old and new classes, and what is forgotten of the old ones, [P]."""
        logits = self.net(batch.images)
        labels = batch.labels[:, None].expand(-1, logits.shape[1])
        losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels).mean(0)
        if self.changeable and self.keep_weight and self.originals:
            losses = losses + self.keep_weight * self.forgotten(batch.images[: self.originals], logits)
        return losses

    def matched(self, images: Tensor, index: Tensor) -> Tensor:
        """Mean squared distance of the new logits to the source's, on samples and their blanked neighbours, [P]."""
        address, net = (self.seed, self.epoch, Purpose.INSERT), self.net
        vectors = presence(address, index, 1 + NEIGHBOURS, self.neighbourhood.patches)  # the first blanks nothing
        wanted = net.of_source(blank(net.source.preprocess(images), vectors))[1][:, self.columns]
        logits = net.of_normalised(blank(net.target.preprocess(images), vectors))[:, :, -len(self.columns) :]
        return (logits - wanted[:, None]).square().mean((0, 2))

    def forgotten(self, images: Tensor, logits: Tensor) -> Tensor:
        """How far each branch's old logits are from the target's on its own samples, [P]."""
        taught = self.net.of_target(self.net.target.preprocess(images))[2]
        own = logits[: self.originals, :, : taught.shape[1]]
        return distance(taught[:, None].expand_as(own), own, self.temperature).mean(0)
