"""Training on the values before the first patched place: only what trains is computed."""

from __future__ import annotations

import logging
import math
from collections.abc import Generator, Sequence
from contextlib import closing
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recombine.core.types import Batch, Loader
from recombine.data.mixed import LoaderWrapper
from recombine.engine.evaluate import autocast, evaluating
from recombine.patch.patched import TaskNetwork
from recombine.patch.tasks import Task

__all__ = ["CachedFeatureLoader", "cache_features"]

log = logging.getLogger(__name__)
CHUNK = 256
"""Images of which the prefix is computed at a time."""


def cache_features(
    loaders: list[Any], tasks: Sequence[Task], network: TaskNetwork, precision: str, limit_gib: float
) -> list[Loader]:
    """Loaders of cached prefix values where they can be kept, else those of images; a log line says which and why.

    Each process keeps the values of all images, as the order of each epoch spreads them anew.
    """
    views = loaders[0].views if any(loader.augment is not None for loader in loaders) else 1
    samples = sum(len(task.data.indices("train")) for task in tasks)
    gib = network.prefix_floats * samples * (views or 1) * 4 / 2**30
    names = " and ".join(task.name for task in tasks)
    if problem := _why_not(loaders, network, gib, limit_gib):
        log.info("%s: the values before the first patched place are computed anew in every step: %s", names, problem)
        return loaders
    shown = "" if views == 1 else f" in {views} augmented views"
    log.info("%s: the values before the first patched place are kept (%.2f GiB)%s", names, gib, shown)
    return [CachedFeatureLoader(loader, network, precision) for loader in loaders]


def _why_not(loaders: Sequence[Any], network: TaskNetwork, gib: float, limit_gib: float) -> str:
    """Why prefix values cannot be kept; empty if they can."""
    if not network.frozen:
        return "the base trains too"
    if any(loader.augment is not None and loader.views is None for loader in loaders):
        return "each epoch augments the images in another way (augment_views=8 fixes eight views of each)"
    if math.isinf(gib):
        return "what the patch needs from before it is not only tensors"
    return f"{gib:.2f} GiB are more than feature_cache_gib={limit_gib:g}" if gib > limit_gib else ""


class CachedFeatureLoader(LoaderWrapper):
    """A training loader whose batches hold the values of the frozen prefix, computed once for each view of an image.

    Order, labels and digest are those of the loader of images.
    """

    def __init__(self, train: Any, network: TaskNetwork, precision: str) -> None:
        """`train`: images that are not augmented, or in a fixed number of `views`."""
        super().__init__(train)
        self.network, self.precision = network, precision
        self.images = train
        self.views = 1 if train.augment is None else train.views

    @cached_property
    def _store(self) -> tuple[Tensor, Tensor]:
        """Values [views * samples, prefix_floats], view by view, samples in ascending order, and labels [samples]."""
        values, labels = [], []
        chunks = np.array_split(self.indices, -(-len(self.indices) // CHUNK))
        with evaluating(self.network):
            for view in range(self.views):
                with closing(self.images.read(view, chunks)) as batches:
                    for batch in batches:
                        with autocast(self.precision, batch.images.device):
                            values.append(self.network.prefix(batch.images))
                        labels += [batch.labels.clone()] if view == 0 else []
        return torch.cat(values), torch.cat(labels)

    def epoch(self, epoch: int, start: int = 0) -> Generator[Batch]:
        """Batches of prefix values in the order of the loader of images."""
        values, labels = self._store
        batches = self.loader.epoch_batches(epoch, start)
        if not batches:
            return
        # moved once an epoch: in the loop the host must not wait for the device
        order = np.concatenate(batches).astype(np.int64)
        rows = torch.from_numpy(np.searchsorted(self.indices, order)).to(labels.device)
        index = torch.from_numpy(order).to(labels.device)
        view = epoch % self.views * len(self.indices)
        first = 0
        for batch in batches:
            part = slice(first, first + len(batch))
            first += len(batch)
            yield Batch(values[view + rows[part]], labels[rows[part]], index[part])
