"""Bi-Tuning (Zhong et al. 2021): contrast with the labels, of projections and of classifier scores."""

from __future__ import annotations

import copy
import math
from collections.abc import Generator
from contextlib import closing
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recombine.core.distributed import gather_rows
from recombine.core.types import Batch, Loader, Step
from recombine.data.mixed import LoaderWrapper
from recombine.patch.end_to_end.method import EndToEnd
from recombine.patch.patched import TaskNetwork

__all__ = ["BiTuning", "TwoViews", "contrast", "enqueue"]


class BiTuning(EndToEnd):
    """L = CE + weight (L_z + L_y), each the `contrast` of an image with keys of its class and of all others.

    L_z: projections z of query and keys. L_y: the score of the image's class, w_y . h, where h is (features, 1) and w_y
    (weights, bias) of the classifier, both of length one, w_y without gradient. Keys come from a moving average of the
    network, on another view of the images; `queue` of them are kept for each class.

    In several processes each keeps keys of its own part of the batch until the next step, then those of the first.
    """

    key: TaskNetwork
    queue_z: Tensor
    queue_h: Tensor
    following: Tensor

    def __init__(
        self,
        net: TaskNetwork,
        *,
        weight: float = 1.0,
        temperature: float = 0.07,
        queue: int = 40,
        momentum: float = 0.999,
        projection: int = 128,
        **options: Any,
    ) -> None:
        super().__init__(net, **options)
        self.weight, self.temperature, self.momentum = weight, temperature, momentum
        head: Any = net.patch.head
        nn.init.normal_(head.weight, std=0.01)
        nn.init.zeros_(head.bias)
        width, classes = head.weight[0].numel(), net.patch.classes
        self.projector = nn.Linear(width, projection)
        self.key, self.key_projector = copy.deepcopy(net), copy.deepcopy(self.projector)
        self.key.requires_grad_(False)
        self.key_projector.requires_grad_(False)
        self.register_buffer("queue_z", F.normalize(torch.randn(classes, queue, projection), dim=2))
        self.register_buffer("queue_h", F.normalize(torch.randn(classes, queue, width + 1), dim=2))
        self.register_buffer("following", torch.zeros(classes, dtype=torch.long))

    def loader(self, train: Any) -> Loader:
        """Two views of each image."""
        return TwoViews(train)

    def pretrained(self) -> list[nn.Module]:
        """The projector has the base's learning rate, as in the authors' code."""
        return [self.net.base, self.projector]

    def forward(self, batch: Batch) -> Step:
        """The loss of one batch, whose images are queries [B] and then keys [B]."""
        queries, keys = batch.images.chunk(2)
        features, logits = self.net.features_and_logits(queries)
        with torch.no_grad():
            key_features, _ = self.key.features_and_logits(keys)
        with torch.autocast(features.device.type, enabled=False):  # 16 bits are too few for similarity / 0.07
            penalty = self.weight * self._contrasts(features, key_features, batch.labels)
        return self.step(logits, batch.labels, penalty)

    def _contrasts(self, features: Tensor, key_features: Tensor, labels: Tensor) -> Tensor:
        """L_z + L_y; the keys enter the queues."""
        z, h = F.normalize(self.projector(features), dim=1), with_one(features)
        with torch.no_grad():
            key_z, key_h = F.normalize(self.key_projector(key_features), dim=1), with_one(key_features)
            head: Any = self.net.patch.head
            scorer = F.normalize(torch.cat([head.weight.flatten(1), head.bias[:, None]], 1), dim=1)[labels]
            queue_z = self.queue_z.clone()  # the keys of before this batch; of h those of this batch too
            every_z, every_h, every_label = gather_rows(key_z, key_h, labels)
            slots, last = enqueue(self.following, every_label, self.queue_z.shape[1])
            for store, value in ((self.queue_z, every_z), (self.queue_h, every_h)):
                store.copy_(torch.where(slots[:, :, None], value[last], store))
        scores_z = torch.einsum("bd,ckd->bck", z, queue_z)
        scores_y = torch.einsum("bd,ckd->bck", scorer, self.queue_h)
        loss_z = contrast((z * key_z).sum(1), scores_z, labels, self.temperature)
        return loss_z + contrast((h * scorer).sum(1), scores_y, labels, self.temperature)

    @torch.no_grad()
    def after_update(self, step: int) -> None:
        """Move the network of the keys towards that of the queries."""
        for key, query in ((self.key, self.net), (self.key_projector, self.projector)):
            torch._foreach_lerp_([*key.parameters()], [*query.parameters()], 1 - self.momentum)


class TwoViews(LoaderWrapper):
    """Batches of two augmented views of each image: [2B] images, first all of one view, with B labels."""

    loader: Any

    def epoch(self, epoch: int, start: int = 0) -> Generator[Batch]:
        """The batches of the loader behind, each image in the views of two epochs of its own."""
        places = self.loader.epoch_batches(epoch, start)
        first, second = (self.loader.read(2 * epoch + view, places) for view in (0, 1))
        with closing(first), closing(second):
            for one, other in zip(first, second, strict=True):
                yield one._replace(images=torch.cat([one.images, other.images]))


def contrast(own: Tensor, scores: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Mean KL(u || softmax(s / T)): s are `own` [B] and `scores` [B, C, K], u is uniform over own and the label's."""
    own, scores = own / temperature, scores / temperature
    positive = torch.cat([own[:, None], scores[torch.arange(len(labels), device=labels.device), labels]], 1)
    every = torch.cat([own[:, None], scores.flatten(1)], 1)
    return (every.logsumexp(1) - positive.mean(1)).mean() - math.log(positive.shape[1])


def enqueue(following: Tensor, labels: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Where samples enter the queues of their classes, in order: into which slots, and which sample; both [C, size].

    `following` [C], the next slot of each class, moves on. Nothing here waits for the device.
    """
    same = labels[:, None] == labels
    slot = (following[labels] + same.tril(-1).sum(1)) % size
    place = labels * size + slot
    entering = torch.full((len(following) * size,), -1, device=labels.device)
    entering.scatter_reduce_(0, place, torch.arange(len(labels), device=labels.device), "amax")
    following.copy_((following + torch.bincount(labels, minlength=len(following))) % size)
    entering = entering.view(-1, size)
    return entering >= 0, entering.clamp(min=0)


def with_one(features: Tensor) -> Tensor:
    """(features, 1) of length one."""
    return F.normalize(F.pad(features, (0, 1), value=1.0), dim=1)
