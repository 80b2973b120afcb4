"""What a clone is compared with (section 7): both networks side by side, tuning the target, training from scratch."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recombine.core.errors import ConfigError
from recombine.core.types import Batch, Step
from recombine.data.augment_settings import PRESETS
from recombine.engine.method import Method, Supervised
from recombine.models import Model
from recombine.models import build as network
from recombine.models.graph import traced
from recombine.pnc.clone.branch import linear_head
from recombine.pnc.training import distance
from recombine.pnc.workbench import Workbench

__all__ = ["DirectEnsemble", "FromScratch", "Tuning", "ensemble", "from_scratch", "tuned", "widened", "wrong_numbers"]


def wrong_numbers(settings: object, *others: str) -> list[str]:
    """One message for each field that is no number of at least 0; `others` hold something else."""
    return [
        f"method.{key}={value}: a number of at least 0 is needed"
        for key, value in vars(settings).items()
        if key not in ("name", "optimizer", *others)
        and (not isinstance(value, int | float) or isinstance(value, bool) or value < 0)
    ]


@dataclass(frozen=True)
class DirectEnsemble:
    """argmax over the target's logits and those of the cloned classes, nothing trained (B5)."""

    name: str = "ensemble"
    softmax: bool = False
    """Of each network's own outputs before they stand side by side."""

    def __post_init__(self) -> None:
        if not isinstance(self.softmax, bool):
            raise ConfigError(f"method.softmax={self.softmax}: true or false")


class _SideBySide(nn.Module):
    def __init__(self, target: Model, source: Model, outputs: list[int], softmax: bool) -> None:
        super().__init__()
        self.target, self.source, self.outputs, self.softmax = target, source, outputs, softmax

    def forward(self, images: Tensor) -> Tensor:
        both = [self.target(images), self.source(images)]
        target, source = (logits.softmax(1) for logits in both) if self.softmax else both
        return torch.cat([target, source[:, self.outputs]], 1)


def ensemble(bench: Workbench, method: DirectEnsemble) -> nn.Module:
    """Both whole networks in the joint label space."""
    return _SideBySide(bench.target, bench.source, bench.outputs, method.softmax)


@dataclass(frozen=True)
class Tuning:
    """The target with new rows, all of it trained: what overwrites the weights that cloning leaves alone (B6 to B9)."""

    optimizer: Callable
    """Constructor from parameter groups: SGD as tuning takes it, where the clone's few new parameters take Adam."""
    name: str = "lwf"
    keep_weight: float = 1.0
    """Of T^2 KL to the target on its own outputs (Learning without Forgetting); 0 is plain fine-tuning (B6)."""
    source_weight: float = 0.0
    """Of T^2 KL to the source on the cloned classes (B9)."""
    temperature: float = 2.0
    epochs: float = 20
    min_steps: int = 600
    """As many as both stages of a clone together."""

    def __post_init__(self) -> None:
        if wrong := wrong_numbers(self):
            raise ConfigError(wrong)


class _Tuning(Method):
    """Cross entropy in the joint label space, and what was known before."""

    frozen = ("target", "source")

    def __init__(self, net: nn.Module, target: Model, source: Model, outputs: list[int], settings: Tuning) -> None:
        super().__init__(net)
        self.target, self.source, self.outputs, self.settings = target, source, outputs, settings

    def forward(self, batch: Batch) -> Step:
        """The loss of a batch of both kinds, or of cloned classes alone."""
        logits = self.net(batch.images).float()
        width = self.target.classes
        loss = F.cross_entropy(logits, batch.labels)
        logs = {"xe": loss.detach()}
        settings = self.settings
        if settings.keep_weight:
            kept = distance(self.target(batch.images), logits[:, :width], settings.temperature)
            loss = loss + settings.keep_weight * kept.mean()
        if settings.source_weight:
            taught = self.source(batch.images)[:, self.outputs]
            new = batch.labels >= width
            learned = distance(taught, logits[:, width:], settings.temperature) * new
            loss = loss + settings.source_weight * learned.sum() / new.sum().clamp(min=1)
        return Step(loss, {"loss": loss.detach(), **logs})


def widened(bench: Workbench) -> Model:
    """A trainable copy of the target with random new rows for the classes to add."""
    net = deepcopy(bench.target).requires_grad_(True)
    graph = traced(net)
    old = linear_head(graph)
    new = nn.Linear(old.in_features, old.out_features + len(bench.outputs), bias=old.bias is not None)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(bench.run.seed)
        new.reset_parameters()
    new = new.to(old.weight.device)
    new.weight.data[: old.out_features] = old.weight.data
    if old.bias is not None:
        new.bias.data[: old.out_features] = old.bias.data
    parent, _, child = graph.head.rpartition(".")
    setattr(net.net.get_submodule(parent), child, new)
    return net


def tuned(bench: Workbench, method: Tuning) -> nn.Module:
    """A copy of the target with new rows, trained whole."""
    net = widened(bench)
    loader, _ = bench.joint_loader(bench.cfg.batch_size)
    loader = bench.long_enough(loader, method.epochs, method.min_steps)
    training = _Tuning(net, bench.target, bench.source, bench.outputs, method)
    bench.fit(training, loader, "finetune", method.epochs, method.optimizer)
    return net.eval()


@dataclass(frozen=True)
class FromScratch:
    """A new network of the target's architecture, trained on old and new classes together (B3 and B4).

    It sees images of the target's own classes whatever `use_target_data` says: without them there is nothing to join.
    """

    optimizer: Callable
    schedule: Callable
    name: str = "joint_full"
    whole: bool = True
    """All training images (B3), or those that a clone trains on (B4)."""
    epochs: float = 20
    min_steps: int = 0
    augment: str = "none"
    """As in `dataset.augment`: how the networks themselves were trained."""

    def __post_init__(self) -> None:
        wrong = wrong_numbers(self, "schedule", "whole", "augment")
        if not isinstance(self.whole, bool):
            wrong.append(f"method.whole={self.whole}: true or false")
        if self.augment not in PRESETS:
            wrong.append(f"method.augment={self.augment}: one of {', '.join(PRESETS)} is needed")
        if wrong:
            raise ConfigError(wrong)


def from_scratch(bench: Workbench, method: FromScratch) -> nn.Module:
    """The target's architecture, drawn from the run's seed, and trained in the joint label space."""
    target, count = bench.target, len(bench.class_names)
    node = {**target.options, **target.preprocess.settings(), "architecture": target.architecture, "weights": None}
    net = network({**node, "name": method.name}, classes=count, seed=bench.run.seed).to(bench.run.device)
    loader = bench.scratch_loader(bench.cfg.batch_size, whole=method.whole, augment=method.augment)
    loader = bench.long_enough(loader, method.epochs, method.min_steps)
    bench.fit(Supervised(net), loader, "scratch", method.epochs, method.optimizer, method.schedule)
    return net.eval()
