"""What a clone is compared with: both networks side by side, tuning the target, training from scratch."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from recombine.core.distributed import all_reduce_sum
from recombine.core.types import Batch, Loader, Step
from recombine.engine.method import Method, Supervised
from recombine.models import Model
from recombine.models import build as build_network
from recombine.models.graph import traced
from recombine.pnc.clone.branch import find_linear_head
from recombine.pnc.data import CloneData, repeat_for_steps
from recombine.pnc.evaluator import Evaluator
from recombine.pnc.method_settings import DirectEnsembleSettings, EwcSettings, FineTuningSettings, FromScratchSettings
from recombine.pnc.metrics import mean_accuracy
from recombine.pnc.stages import distillation
from recombine.pnc.trainer import Trainer
from recombine.run.config import build

__all__ = [
    *("DirectEnsemble", "ElasticWeightConsolidation", "FineTuning", "add_outputs", "consolidate", "ensemble"),
    *("estimate_fisher", "finetune", "train_from_scratch"),
]

MAX_GRADIENTS = 2**28
"""Gradients of single samples held in memory, in numbers."""
Trained = tuple[nn.Module, dict[str, float]]
"""A network in the joint label space, and metrics of its training."""


# ------------------------------------------------------------------------------------------- direct ensemble


class DirectEnsemble(nn.Module):
    """The target's logits, then those of the source's `outputs`."""

    def __init__(self, target: Model, source: Model, outputs: list[int], softmax: bool) -> None:
        """`softmax`: of each network's own outputs first."""
        super().__init__()
        self.target, self.source, self.outputs, self.softmax = target, source, outputs, softmax

    def forward(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] -> [B, T + n]."""
        both = [self.target(images), self.source(images)]
        target, source = (logits.softmax(1) for logits in both) if self.softmax else both
        return torch.cat([target, source[:, self.outputs]], 1)


def ensemble(
    target: Model,
    source: Model,
    data: CloneData,
    method: DirectEnsembleSettings,
    trainer: Trainer,
    evaluator: Evaluator,
) -> Trained:
    """Both whole networks in the joint label space; nothing is trained."""
    samples = {"samples_original": 0.0, "samples_cloned": 0.0}
    return DirectEnsemble(target, source, data.outputs, method.softmax), samples


# ------------------------------------------------------------------------------------------------ fine-tuning


class FineTuning(Method):
    """Cross entropy in the joint label space, and distillation of what was known before."""

    frozen = ("target", "source")

    def __init__(
        self, net: nn.Module, target: Model, source: Model, outputs: list[int], settings: FineTuningSettings
    ) -> None:
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
            old = distillation(self.target(batch.images), logits[:, :width], settings.temperature)
            loss = loss + settings.keep_weight * old.mean()
        if settings.source_weight:
            teacher = self.source(batch.images)[:, self.outputs]
            cloned = batch.labels >= width
            new = distillation(teacher, logits[:, width:], settings.temperature) * cloned
            loss = loss + settings.source_weight * new.sum() / cloned.sum().clamp(min=1)
        return Step(loss, {"loss": loss.detach(), **logs})


def add_outputs(target: Model, count: int, seed: int) -> Model:
    """A trainable copy of the target with `count` random new rows of its classifier."""
    net = deepcopy(target).requires_grad_(True)
    graph = traced(net)
    old = find_linear_head(graph)
    new = nn.Linear(old.in_features, old.out_features + count, bias=old.bias is not None)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        new.reset_parameters()
    new = new.to(old.weight.device)
    new.weight.data[: old.out_features] = old.weight.data
    if old.bias is not None:
        new.bias.data[: old.out_features] = old.bias.data
    parent, _, child = graph.head.rpartition(".")
    setattr(net.net.get_submodule(parent), child, new)
    return net


def finetune(
    target: Model, source: Model, data: CloneData, method: FineTuningSettings, trainer: Trainer, evaluator: Evaluator
) -> Trained:
    """A copy of the target with new rows, trained whole."""
    net = add_outputs(target, len(data.outputs), trainer.seed)
    loader, _ = data.joint_loader(trainer.batch_size, target)
    loader = repeat_for_steps(loader, method.epochs, method.min_steps)
    training = FineTuning(net, target, source, data.outputs, method)
    fit = trainer.fit(training, loader, "finetune", method.epochs, build(method.optimizer))
    return net.eval(), {"finetune_seconds": fit.seconds, **data.count_samples()}


# ------------------------------------------------------------------------------- elastic weight consolidation


def estimate_fisher(model: Model, loader: Loader) -> dict[str, Tensor]:
    """Diagonal empirical Fisher information by parameter of `model.net`: mean over samples of (d log p(y|x))^2."""
    parameters = {name: value.detach() for name, value in model.net.named_parameters()}
    buffers = dict(model.net.named_buffers())

    def loss(values: Mapping[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
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
    """Cross entropy in the joint label space and 1/2 sum_j k_j (theta_j - theta*_j)^2 over the target's parameters."""

    frozen = ("target",)

    def __init__(self, net: Model, target: Model, stiffness: Mapping[str, Tensor]) -> None:
        super().__init__(net)
        self.target, self.stiffness = target, stiffness

    def forward(self, batch: Batch) -> Step:
        """The loss of a batch of both kinds, or of cloned classes alone."""
        loss = F.cross_entropy(self.net(batch.images).float(), batch.labels)
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


def consolidate(
    target: Model, source: Model, data: CloneData, method: EwcSettings, trainer: Trainer, evaluator: Evaluator
) -> Trained:
    """The best of a copy of the target with new rows for each strength (Kirkpatrick et al., PNAS 2017).

    Deviation: k_j = lambda F_j goes no higher than 1 / learning rate, where a gradient step already puts a weight back
    to its old value; without this limit the largest of the F_j make training diverge.
    """
    optimizer = build(method.optimizer)
    information = estimate_fisher(target, data.target_loader(trainer.eval_batch_size, target.canvas))
    rate = optimizer([nn.Parameter(torch.zeros(1))]).param_groups[0]["lr"]
    loader, _ = data.joint_loader(trainer.batch_size, target)
    loader = repeat_for_steps(loader, method.epochs, method.min_steps)
    scores, seconds = {}, 0.0
    best: nn.Module = target
    for strength in method.strengths:
        stiffness = {name: (strength * value).clamp(max=1 / rate) for name, value in information.items()}
        net = add_outputs(target, len(data.outputs), trainer.seed)
        training = ElasticWeightConsolidation(net, target, stiffness)
        seconds += trainer.fit(training, loader, f"finetune/{strength:g}", method.epochs, optimizer).seconds
        score = mean_accuracy(*evaluator.predict_joint(training.net.eval(), data, "select"))
        if score > max(scores.values(), default=-1.0):
            best = training.net
        scores.setdefault(float(strength), score)
    samples = data.count_samples() | {"samples_original": float(len(data.split(data.target, "train")))}
    return best, {"finetune_seconds": seconds, "strength": max(scores, key=scores.__getitem__), **samples}


# ------------------------------------------------------------------------------------------ training anew


def train_from_scratch(
    target: Model, source: Model, data: CloneData, method: FromScratchSettings, trainer: Trainer, evaluator: Evaluator
) -> Trained:
    """The target's architecture, drawn from the run's seed, and trained in the joint label space."""
    node = {**target.options, **target.preprocess.settings(), "architecture": target.architecture, "weights": None}
    net = build_network({**node, "name": method.name}, classes=data.joint_classes, seed=trainer.seed)
    parts = data.whole_parts() if method.whole else data.parts()
    loader = repeat_for_steps(
        data.mix(parts, trainer.batch_size, target, method.augment)[0], method.epochs, method.min_steps
    )
    constructors = build(method.optimizer), build(method.schedule)
    fit = trainer.fit(Supervised(net.to(trainer.run.device)), loader, "scratch", method.epochs, *constructors)
    samples = (float(len(indices)) for _, indices in parts)
    return net.eval(), {
        "scratch_seconds": fit.seconds,
        **dict(zip(("samples_original", "samples_cloned"), samples, strict=True)),
    }
