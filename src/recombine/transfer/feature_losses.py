"""Losses between features of the student and of the networks that teach it, for any mask.

A mask says how much each of K frozen networks (the initial student first) teaches a sample: w_k. What is learned of it
is kl KL(target || student) + weight sum_k w_k D(student, network k), with D of the features at the given modules. So a
sample that the mask leaves to the initial student stays where that has it, and any other moves to where its teacher has
it. What D learns for itself (adapters, embeddings) trains with the student and is dropped afterwards.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Size, Tensor, nn
from torch.nn import functional as F

from recombine.core.distributed import gather_batch
from recombine.core.errors import ConfigError
from recombine.core.types import Batch
from recombine.models import Model
from recombine.transfer.contrastive import ContrastiveMemory, ContrastiveSamples
from recombine.transfer.features import Place, feature_maps, find_places
from recombine.transfer.losses import DistillationLoss, kl_divergence

__all__ = ["CRD", "AttentionTransfer", "FeatureLoss", "FitNet", "SimilarityPreserving"]

Features = Sequence[Tensor]
"""Of one network, at each of the modules, [B, ...]."""


class FeatureLoss(DistillationLoss):
    """The base of losses between features; a subclass defines `distance`."""

    reads_features = True

    def __init__(
        self,
        name: str,
        *,
        weight: float = 1.0,
        kl_weight: float = 1.0,
        student_modules: Sequence[str] | None = None,
        teacher_modules: Sequence[str] | None = None,
        **options: Any,
    ) -> None:
        """`student_modules`: paths whose outputs are compared, None: what enters the classifier. `teacher_modules`:
        those of the teachers, None: the same paths. `options` are those of `DistillationLoss`, for KL.
        """
        super().__init__(name, **options)
        self.weight, self.kl_weight = weight, kl_weight
        self.student_modules = student_modules
        self.teacher_modules = student_modules if teacher_modules is None else teacher_modules
        self.used: Sequence[int] = ()
        self.places: dict[int, list[Place] | None] = {}

    def attach(
        self, net: Model, candidates: Sequence[Model], used: Sequence[int], samples: ContrastiveSamples | None
    ) -> None:
        """Look at the networks whose features are compared; `used`: places of the candidates that may teach."""
        self.used = used
        self.places[0] = find_places(net, self.student_modules, "method.loss.student_modules")
        for place in used:
            if place:
                self.places[place] = find_places(candidates[place], self.teacher_modules, "method.loss.teacher_modules")
        shapes = {place: _shapes(candidates[place], places) for place, places in self.places.items()}
        for place in sorted(used, reverse=True):  # a teacher that does not fit tells more than the student itself
            pairs = zip(shapes[0], shapes[place], strict=True)
            for name, pair in zip(self.student_modules or ["features"], pairs, strict=True):
                self.fit(name, *pair, (net, candidates[place]))
        for place in used:
            self.prepare(place, shapes[0], shapes[place], samples)

    def forward(self, student: Tensor, target: Tensor, labels: Tensor | None) -> Tensor:
        """The part between logits, [B]."""
        return self.kl_weight * kl_divergence(student, target, self.temperature)

    def compare(self, own: Features, theirs: Sequence[Features], weights: Tensor, batch: Batch) -> Tensor:
        """The part between features, [B]; `weights` [K, B] say who teaches a sample, `theirs` are those of `used`."""
        with torch.autocast(weights.device.type, enabled=False):
            parts = [
                weights[place] * self.distance(place, own, features, batch)
                for place, features in zip(self.used, theirs, strict=True)
            ]
        return self.weight * torch.stack(parts).sum(0)

    def fit(self, name: str, own: Size, theirs: Size, networks: tuple[Model, Model]) -> None:
        """ConfigError where features of these shapes, at the student's module `name`, cannot be compared."""

    def prepare(self, place: int, own: Sequence[Size], theirs: Sequence[Size], samples: Any) -> None:
        """Make what is learned for the candidate at `place`, from the shapes of its features."""

    def distance(self, place: int, own: Features, theirs: Features, batch: Batch) -> Tensor:
        """Of each sample from the candidate at `place`, [B]."""
        raise TypeError(f"{type(self).__name__} defines no distance(place, own, theirs, batch)")


class FitNet(FeatureLoss):
    """Features are regressed through an adapter (Romero et al., FitNets, ICLR 2015): mean (A x_s - x_t)^2.

    Deviation: A is linear (1x1 on maps) without BatchNorm and ReLU, and the larger of two maps is averaged to the
    smaller one's size; towards the initial student, which has the same features, it is the identity.
    """

    def __init__(self, name: str, **options: Any) -> None:
        super().__init__(name, **options)
        self.adapters = nn.ModuleDict()

    def fit(self, name: str, own: Size, theirs: Size, networks: tuple[Model, Model]) -> None:
        """Both maps, or both vectors, or both equally many tokens."""
        if len(own) != len(theirs) or (len(own) == 3 and own[1] != theirs[1]):
            raise ConfigError(_unlike("fitnet", name, own, theirs, networks))

    def prepare(self, place: int, own: Sequence[Size], theirs: Sequence[Size], samples: Any) -> None:
        """An adapter for each module of a teacher."""
        if place:
            pairs = zip(own, theirs, strict=True)
            self.adapters[str(place)] = nn.ModuleList(_adapter(*pair) for pair in pairs)

    def distance(self, place: int, own: Features, theirs: Features, batch: Batch) -> Tensor:
        """Mean over the features of each module, summed over modules."""
        if place:
            adapters: Any = self.adapters[str(place)]
            own = [adapter(features) for adapter, features in zip(adapters, own, strict=True)]
        return _sum((a - b).square().flatten(1).mean(1) for a, b in map(_same_size, own, theirs))


class AttentionTransfer(FeatureLoss):
    """Where maps are active (Zagoruyko and Komodakis, ICLR 2017): mean over positions of (Q_s - Q_t)^2.

    Q is the mean of squares over channels, of length 1; the larger of two maps is averaged to the smaller one's size.
    """

    def fit(self, name: str, own: Size, theirs: Size, networks: tuple[Model, Model]) -> None:
        """Both maps."""
        if len(own) != 4 or len(theirs) != 4:
            raise ConfigError(_unlike("at", name, own, theirs, networks))

    def distance(self, place: int, own: Features, theirs: Features, batch: Batch) -> Tensor:
        """Mean over positions, summed over modules."""
        pairs = map(_same_size, own, theirs)
        return _sum((_attention(a) - _attention(b)).square().mean(1) for a, b in pairs)


class SimilarityPreserving(FeatureLoss):
    """Which samples of a batch are alike (Tung and Mori, ICCV 2019): sum_j (G_s - G_t)_ij^2 / B for sample i.

    G are the products of all pairs of samples' features, with rows of length 1; a sample's row is that of its teacher.
    """

    def distance(self, place: int, own: Features, theirs: Features, batch: Batch) -> Tensor:
        """Of each row, summed over modules."""
        pairs = zip(own, theirs, strict=True)
        return _sum((_similarities(a) - _similarities(b)).square().mean(1) for a, b in pairs)


class CRD(FeatureLoss):
    """The same sample's embeddings agree among those of other classes (Tian, Krishnan and Isola, ICLR 2020).

    Each candidate has a memory of its own, see `ContrastiveMemory`. Maps are averaged over space.
    """

    reads_labels = True

    def __init__(
        self,
        name: str,
        *,
        dimensions: int = 128,
        negatives: int = 4096,
        nce_temperature: float = 0.07,
        nce_momentum: float = 0.5,
        **options: Any,
    ) -> None:
        """`dimensions` of the embeddings; `negatives`: samples of other classes for each sample."""
        super().__init__(name, **options)
        self.memory = {"dimensions": dimensions, "negatives": negatives}
        self.memory |= {"temperature": nce_temperature, "momentum": nce_momentum}  # type: ignore[dict-item]
        self.embeddings, self.memories = nn.ModuleDict(), nn.ModuleDict()

    def prepare(self, place: int, own: Sequence[Size], theirs: Sequence[Size], samples: Any) -> None:
        """Embeddings and a memory for each module."""
        pairs, dimensions = list(zip(own, theirs, strict=True)), self.memory["dimensions"]
        both = [nn.ModuleList(nn.Linear(_channels(side), dimensions) for side in pair) for pair in pairs]
        self.embeddings[str(place)] = nn.ModuleList(both)
        self.memories[str(place)] = nn.ModuleList(ContrastiveMemory(samples, **self.memory) for _ in pairs)

    def distance(self, place: int, own: Features, theirs: Features, batch: Batch) -> Tensor:
        """NCE against the memories, summed over modules."""
        embeddings: Any = self.embeddings[str(place)]
        memories: Any = self.memories[str(place)]
        parts = zip(embeddings, memories, zip(own, theirs, strict=True), strict=True)
        return _sum(memory(*map(_embedded, both, pair), batch) for both, memory, pair in parts)


def _shapes(model: Model, places: Sequence[Place] | None) -> list[Size]:
    """Of the features of one image."""
    return [Size((1, model.width))] if places is None else [place.shape for place in places]


def _adapter(own: Size, theirs: Size) -> nn.Module:
    """From the student's channels to the teacher's, of maps [B, C, H, W], tokens [B, N, D] or vectors [B, D]."""
    return nn.Conv2d(own[1], theirs[1], 1) if len(own) == 4 else nn.Linear(own[-1], theirs[-1])


def _same_size(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Two maps, the larger one averaged to the smaller one's size; anything else as it is."""
    if a.ndim != 4 or a.shape[2:] == b.shape[2:]:
        return a, b
    size = min(a.shape[2], b.shape[2]), min(a.shape[3], b.shape[3])
    return F.adaptive_avg_pool2d(a, size), F.adaptive_avg_pool2d(b, size)


def _attention(features: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, H W], of length 1."""
    return F.normalize(features.square().mean(1).flatten(1), dim=1)


def _similarities(features: Tensor) -> Tensor:
    """[B, ...] -> [B, samples of all processes], rows of length 1."""
    flat = features.flatten(1)
    return F.normalize(flat @ gather_batch(flat).T, dim=1)


def _embedded(layer: nn.Module, features: Tensor) -> Tensor:
    """Embeddings [B, d] of length 1."""
    return F.normalize(layer(_vectors(features)), dim=1)


def _vectors(features: Tensor) -> Tensor:
    """[B, D]: maps averaged over space, tokens over their number."""
    return features.mean((2, 3)) if features.ndim == 4 else features.mean(1) if features.ndim == 3 else features


def _channels(shape: Size) -> int:
    """D of `_vectors`."""
    return shape[1] if len(shape) == 4 else shape[-1]


def _sum(parts: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(parts)).sum(0)


def _unlike(loss: str, name: str, own: Size, theirs: Size, networks: tuple[Model, Model]) -> str:
    """The message for features that cannot be compared."""
    sides = zip((own, theirs), networks, strict=True)
    shapes = " and ".join(f"{list(shape[1:])} ({model.name})" for shape, model in sides)
    needed = {"at": "maps", "fitnet": "maps, or vectors, or equally many tokens"}[loss]
    maps = {model.name: ", ".join(feature_maps(model)) or "none" for model in networks}
    known = "; ".join(f"maps of {model}: {paths}" for model, paths in maps.items())
    return (
        f"loss={loss} compares {needed}, and at {name} there are {shapes}; set "
        f"method.loss.student_modules=[...] and method.loss.teacher_modules=[...] ({known}), or choose loss=sp, which "
        "compares any features"
    )
