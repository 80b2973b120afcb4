"""What a clone is compared with: both networks side by side, probes, tuning the target, training from scratch.

Whatever trains here is trained once for each of its learning rates and strengths; the best of them by mean accuracy
on the images kept for selection is what is measured, as the position of a clone is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from recombine.core.distributed import all_reduce_sum, divisor
from recombine.core.types import Batch, Loader, Step
from recombine.engine.method import Method, Supervised
from recombine.models import Model
from recombine.models.graph import traced
from recombine.pnc.baseline_settings import (
    DirectEnsembleSettings,
    EwcSettings,
    FineTuningSettings,
    FromScratchSettings,
    TrainedSettings,
)
from recombine.pnc.clone.adapters import pool
from recombine.pnc.clone.branch import find_linear_head
from recombine.pnc.clone.candidates import build_taps
from recombine.pnc.clone_task import CloneTask
from recombine.pnc.data import repeat_for_steps
from recombine.pnc.metrics import mean_accuracy
from recombine.pnc.networks import build_untrained
from recombine.pnc.stages import distillation
from recombine.run.config import build

__all__ = [
    *("DirectEnsemble", "ElasticWeightConsolidation", "FineTuning", "LinearProbe", "add_outputs", "consolidate"),
    *("cross_entropy", "ensemble", "estimate_fisher", "finetune", "train_from_scratch"),
]

MAX_GRADIENTS = 2**28
"""Gradients of single samples held in memory, in numbers."""
Trained = tuple[nn.Module, dict[str, float]]
"""A network in the joint label space, and metrics of its training."""


def train_best(
    task: CloneTask,
    method: TrainedSettings,
    loader: Loader,
    make: Callable[[float, float], Method],
    strengths: Sequence[float] = (0.0,),
    schedule: Callable | None = None,
) -> Trained:
    """The best of `make(strength, learning rate)`, trained for each strength and learning rate."""
    loader = repeat_for_steps(loader, method.epochs, method.min_steps)
    optimizer = build(method.optimizer)
    best: Trained | None = None
    seconds = 0.0
    for strength in strengths:
        for factor in method.lr_factors:
            rate = factor * method.optimizer["lr"]
            training = make(strength, rate)
            name = f"tune/{strength:g}-{rate:g}".replace("+", "")
            fit = task.trainer.fit(training, loader, name, method.epochs, partial(optimizer, lr=rate), schedule)
            score = mean_accuracy(*task.evaluator.predict_joint(training.net.eval(), task.data, "select"))
            seconds += fit.seconds
            if best is None or score > best[1]["select_average"]:
                best = training.net, {"select_average": score, "strength": float(strength), "learning_rate": rate}
    assert best is not None  # there is a learning rate
    return best[0], {**best[1], "fit_seconds": seconds, **task.data.count_samples()}


# ------------------------------------------------------------------------------------------- direct ensemble


class DirectEnsemble(nn.Module):
    """The target's logits, then those of the source's `outputs`."""

    def __init__(self, target: Model, source: Model, outputs: list[int], softmax: bool) -> None:
        """`softmax`: of each network's own outputs first."""
        super().__init__()
        self.target, self.source, self.softmax = target, source, softmax
        self.columns: Tensor
        place = next(target.parameters()).device
        self.register_buffer("columns", torch.tensor(outputs, device=place), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] -> [B, T + n]."""
        both = [self.target(images), self.source(images)]
        target, source = (logits.softmax(1) for logits in both) if self.softmax else both
        return torch.cat([target, source[:, self.columns]], 1)


def ensemble(task: CloneTask, method: DirectEnsembleSettings) -> Trained:
    """Both whole networks in the joint label space; nothing is trained."""
    samples = {"samples_original": 0.0, "samples_cloned": 0.0}
    return DirectEnsemble(task.target, task.source, task.data.outputs, method.softmax), samples


# ------------------------------------------------------------------------------------------------ fine-tuning


class LinearProbe(nn.Module):
    """The target's logits, then new rows on frozen features: the target's, the source's or both."""

    def __init__(self, target: Model, source: Model, features: str, count: int) -> None:
        super().__init__()
        self.target, self.source, self.features = target, source, features
        graphs = traced(target), traced(source)
        # in a tuple: the taps share the modules of both networks, which must be registered only once
        self._taps = tuple(build_taps(graph, (), "target") for graph in graphs)
        widths = [find_linear_head(graph).in_features for graph in graphs]
        used = [features in ("target", "both"), features in ("source", "both")]
        self.fc = nn.Linear(sum(width for width, there in zip(widths, used, strict=True) if there), count)

    def forward(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] -> [B, T + n]."""
        features, logits = self._taps[0](self.target.preprocess(images))
        seen = [] if self.features == "source" else [features]
        if self.features != "target":
            seen.append(self._taps[1](self.source.preprocess(images))[0])
        return torch.cat([logits.float(), self.fc(torch.cat([pool(each) for each in seen], 1)).float()], 1)


def cross_entropy(logits: Tensor, labels: Tensor, width: int, use_target_data: bool) -> Tensor:
    """Over all classes [B, T + n] where images of both kinds train; else over the new ones alone, from `width` on.

    Without images of the old classes the new outputs are trained as a task of their own, as Learning without
    Forgetting does (Li & Hoiem, ECCV 2016): over all classes every image would be pushed to the new ones.
    Deviation: a single new class has no task of its own, and is trained against the old ones.
    """
    first = 0 if use_target_data or logits.shape[1] - width == 1 else width
    return F.cross_entropy(logits[:, first:], labels - first)


class FineTuning(Method):
    """Cross entropy of the new classes, and distillation of what was known before."""

    frozen = ("target", "source")

    def __init__(self, net: nn.Module, task: CloneTask, settings: FineTuningSettings) -> None:
        super().__init__(net)
        self.target, self.source, self.settings = task.target, task.source, settings
        self.use_target_data = task.data.use_target_data
        self.columns: Tensor
        self.register_buffer("columns", torch.tensor(task.data.outputs), persistent=False)

    def forward(self, batch: Batch) -> Step:
        """The loss of a batch of both kinds, or of cloned classes alone."""
        logits = self.net(batch.images).float()
        width, settings = self.target.classes, self.settings
        loss = cross_entropy(logits, batch.labels, width, self.use_target_data)
        logs = {"xe": loss.detach()}
        if settings.keep_weight:
            old = distillation(self.target(batch.images), logits[:, :width], settings.temperature)
            loss = loss + settings.keep_weight * old.mean()
        if settings.source_weight:
            teacher = self.source(batch.images)[:, self.columns]
            cloned = batch.labels >= width
            new = distillation(teacher, logits[:, width:], settings.temperature) * cloned
            loss = loss + settings.source_weight * new.sum() / divisor(cloned.sum())
        return Step(loss, {"loss": loss.detach(), **logs})


def add_outputs(target: Model, count: int, seed: int) -> Model:
    """A trainable copy of the target with `count` random new rows of its classifier."""
    net = deepcopy(target).requires_grad_(True)
    graph = traced(net)
    width = find_linear_head(graph).out_features
    old: Any = graph.net.get_submodule(graph.head)
    layer: Any = partial(nn.Conv2d, kernel_size=1) if isinstance(old, nn.Conv2d) else nn.Linear
    new = layer(old.weight.shape[1], width + count, bias=old.bias is not None)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        new.reset_parameters()
    new = new.to(old.weight.device)
    new.weight.data[:width] = old.weight.data
    if old.bias is not None:
        new.bias.data[:width] = old.bias.data
    parent, _, child = graph.head.rpartition(".")
    setattr(net.net.get_submodule(parent), child, new)
    return net


def finetune(task: CloneTask, method: FineTuningSettings) -> Trained:
    """A copy of the target with new rows, trained whole; or new rows alone on features that stay as they are."""
    count = len(task.data.outputs)

    def make(_strength: float, _rate: float) -> Method:
        if method.features is None:
            return FineTuning(add_outputs(task.target, count, task.trainer.seed), task, method)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(task.trainer.seed)
            net = LinearProbe(task.target, task.source, method.features, count)
        return FineTuning(net.to(task.trainer.run.device), task, method)

    return train_best(task, method, task.data.joint_loader(task.trainer.batch_size, task.target)[0], make)


# ------------------------------------------------------------------------------- elastic weight consolidation


def estimate_fisher(model: Model, loader: Loader) -> dict[str, Tensor]:
    """Diagonal empirical Fisher information by parameter of `model.net`: mean over samples of (d log p(y|x))^2."""
    parameters = {name: value.detach() for name, value in model.net.named_parameters()}
    buffers = dict(model.net.named_buffers())

    def loss(values: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        logits = functional_call(model.net, (values, buffers), (image[None],))
        return F.cross_entropy(logits.float(), label[None])

    gradients = vmap(grad(loss), (None, 0, 0))
    rows = max(1, MAX_GRADIENTS // sum(value.numel() for value in parameters.values()))
    total = {name: torch.zeros_like(value) for name, value in parameters.items()}
    count = torch.zeros((), device=next(iter(total.values())).device)
    with closing(loader.epoch(0)) as batches:
        for batch in batches:
            images = model.preprocess(batch.images)
            for chunk, labels in zip(images.split(rows), batch.labels.split(rows), strict=True):
                for name, each in gradients(parameters, chunk, labels).items():
                    total[name] += each.square().sum(0)
            count += len(batch.labels)
    all_reduce_sum(count)
    return {name: all_reduce_sum(value) / count for name, value in total.items()}


class ElasticWeightConsolidation(Method):
    """Cross entropy of the new classes and 1/2 sum_j k_j (theta_j - theta*_j)^2 over the target's parameters."""

    frozen = ("target",)

    def __init__(self, net: Model, target: Model, stiffness: Mapping[str, Tensor], use_target_data: bool) -> None:
        super().__init__(net)
        self.target, self.stiffness, self.use_target_data = target, stiffness, use_target_data
        self.net: Model

    def forward(self, batch: Batch) -> Step:
        """The loss of a batch of both kinds, or of cloned classes alone."""
        logits = self.net(batch.images).float()
        loss = cross_entropy(logits, batch.labels, self.target.classes, self.use_target_data)
        penalty = self.penalty()
        return Step(
            loss + penalty, {"loss": (loss + penalty).detach(), "xe": loss.detach(), "penalty": penalty.detach()}
        )

    def penalty(self) -> Tensor:
        """The penalty, 0-d; new rows of the classifier are free."""
        now = dict(self.net.net.named_parameters())
        total = torch.zeros((), device=next(iter(now.values())).device)
        for name, old in self.target.net.named_parameters():
            same = now[name] if now[name].shape == old.shape else now[name][: len(old)]
            total = total + (self.stiffness[name] * (same - old).square()).sum()
        return total / 2


def consolidate(task: CloneTask, method: EwcSettings) -> Trained:
    """The best of a copy of the target with new rows for each strength (Kirkpatrick et al., PNAS 2017).

    Deviation: k_j = lambda F_j goes no higher than 1 / learning rate, where a gradient step already puts a weight back
    to its old value; without this limit the largest of the F_j make training diverge.
    """
    target, data, trainer = task.target, task.data, task.trainer
    information = estimate_fisher(target, data.target_loader(trainer.eval_batch_size, target.canvas))

    def make(strength: float, rate: float) -> Method:
        stiffness = {name: (strength * value).clamp(max=1 / rate) for name, value in information.items()}
        net = add_outputs(target, len(data.outputs), trainer.seed)
        return ElasticWeightConsolidation(net, target, stiffness, data.use_target_data)

    net, metrics = train_best(
        task, method, data.joint_loader(trainer.batch_size, target)[0], make, strengths=method.strengths
    )
    return net, metrics | {"samples_original": float(len(data.split(data.target, "train")))}


# ------------------------------------------------------------------------------------------ training anew


def train_from_scratch(task: CloneTask, method: FromScratchSettings) -> Trained:
    """The target's architecture, drawn from the run's seed, and trained in the joint label space."""
    data, target, trainer = task.data, task.target, task.trainer
    parts = data.whole_parts() if method.whole else data.parts()
    loader = data.mix(parts, trainer.batch_size, target, method.augment)[0]

    def make(_strength: float, _rate: float) -> Method:
        net = build_untrained(target, data.joint_classes, trainer.seed)
        return Supervised(net.to(trainer.run.device))

    net, metrics = train_best(task, method, loader, make, schedule=build(method.schedule))
    samples = (float(len(indices)) for _, indices in parts)
    return net, metrics | dict(zip(("samples_original", "samples_cloned"), samples, strict=True))
