"""The two stages that learn a clone: which filters (eq. 6), then adapter and head with the masks refined (eq. 9)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from src.core.method import Method
from src.core.types import Batch, Step
from src.pnc.branch import Full
from src.pnc.candidates import Candidates
from src.pnc.masks import Gate, annealed, set_keep
from src.pnc.neighbourhood import Neighbourhood, Purpose, blank, local_value, presence
from src.pnc.surrogates import Surrogates, localization_loss

__all__ = ["Insertion", "Localization", "distance"]


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
        surrogates: Surrogates | None,
        *,
        seed: int,
        score_lr: float,
    ) -> None:
        """`surrogates` None matches the source itself in place of its local models (loc.surrogate=direct)."""
        super().__init__(net)
        self.neighbourhood, self.surrogates = neighbourhood, surrogates
        self.seed, self.score_lr, self.epoch = seed, score_lr, 0
        self.register_buffer("columns", torch.tensor(net.branches[0].outputs), persistent=False)
        self.gates = [module for module in net.branches.modules() if isinstance(module, Gate)]

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
        """Eq. (6) for clone samples [B], summed over the branches that have gates, 0-d."""
        near, address = self.neighbourhood, (self.seed, self.epoch, Purpose.TRAIN)
        vectors = presence(address, index, near.num_train, near.patches)
        values, logits = self.net.of_source(blank(self.net.source.preprocess(images), vectors))
        columns = self.columns
        if self.surrogates is None:
            wanted = near.outputs(logits, columns).unflatten(0, vectors.shape[:2])
        else:
            wanted = local_value(self.surrogates(index), vectors)
        total = images.new_zeros((), dtype=torch.float32)
        for branch, value in zip(self.net.branches, values, strict=True):
            if len(branch.gates):
                outputs = near.outputs(branch.upper(value)[1], columns).unflatten(0, vectors.shape[:2])
                total = total + localization_loss(outputs, wanted, near.weights(vectors))
        return total


class Localization(_Cloning):
    """Stage 1: which filters of the source act in the neighbourhood of the cloned samples, for every position."""

    def __init__(self, net: Candidates, *args, steps: int, keep_ratio: float, anneal: bool, **options) -> None:
        """`steps` of this stage, over which the budget falls to `keep_ratio`."""
        super().__init__(net, *args, **options)
        self.steps, self.keep_ratio, self.anneal = steps, keep_ratio, anneal
        set_keep(self.gates, annealed(0, steps, keep_ratio) if anneal else keep_ratio)

    def parameter_groups(self) -> list[dict]:
        """The scores alone."""
        return super().parameter_groups()[-1:]

    def forward(self, batch: Batch) -> Step:
        """Eq. (6) of a batch of clone samples."""
        loss = self.localization(batch.images, batch.index)
        return Step(loss, {"loss": loss.detach()})

    def after_update(self, step: int) -> None:
        """Lower the budget."""
        if self.anneal:
            set_keep(self.gates, annealed(step + 1, self.steps, self.keep_ratio))


class Insertion(_Cloning):
    """Stage 2: adapter and head, and with them the masks: L_ins + weight L_loc, for every position.

    Deviation: without the target's own data our specification matches the source's logits on blanked neighbours too;
    here on the images alone, as L_loc looks at the neighbours already.
    """

    def __init__(
        self,
        net: Candidates,
        *args,
        originals: int,
        loc_weight: float,
        keep_weight: float,
        temperature: float,
        **options,
    ) -> None:
        """The first `originals` samples of every batch are the target's own, the others those of cloned classes.

        `loc_weight` 0 leaves the masks as they are (not joint). `keep_weight` of T^2 KL to the target on its own
        samples: for heads that can change its logits.
        """
        super().__init__(net, *args, **options)
        self.originals, self.loc_weight = originals, loc_weight
        self.keep_weight, self.temperature = keep_weight, temperature
        self.changeable = any(isinstance(branch.head, Full) for branch in net.branches)
        for gate in self.gates:
            gate.scores.requires_grad_(bool(loc_weight))

    def forward(self, batch: Batch) -> Step:
        """Cross entropy over old and new classes, or without the target's own data the source's logits (ours)."""
        logits = self.net(batch.images)
        cloned, index = batch.images[self.originals :], batch.index[self.originals :]
        if self.originals:
            labels = batch.labels[:, None].expand(-1, logits.shape[1])
            losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
            losses = losses.view_as(labels).mean(0)
            if self.changeable and self.keep_weight:
                losses = losses + self.keep_weight * self.forgotten(batch.images[: self.originals], logits)
        else:
            wanted = self.net.of_source(self.net.source.preprocess(cloned))[1][:, self.columns]
            losses = (logits[:, :, -len(self.columns) :] - wanted[:, None]).square().mean((0, 2))
        loss = losses.sum()
        logs = {f"loss_R{b.position.number}": v.detach() for b, v in zip(self.net.branches, losses, strict=True)}
        if self.loc_weight and self.gates:
            localization = self.localization(cloned, index)
            loss, logs["localization"] = loss + self.loc_weight * localization, localization.detach()
        return Step(loss, {"loss": loss.detach(), **logs})

    def forgotten(self, images: Tensor, logits: Tensor) -> Tensor:
        """How far each branch's old logits are from the target's on its own samples, [P]."""
        taught = self.net.of_target(images)[2]
        own = logits[: self.originals, :, : taught.shape[1]]
        return distance(taught[:, None].expand_as(own), own, self.temperature).mean(0)
