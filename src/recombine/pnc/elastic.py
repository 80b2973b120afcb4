"""Elastic weight consolidation (Kirkpatrick et al., PNAS 2017): weights that matter to old classes are held back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from recombine.core.distributed import all_reduce_sum
from recombine.core.errors import ConfigError
from recombine.core.types import Batch, Loader, Step
from recombine.engine.method import Method
from recombine.models import Model
from recombine.pnc.baselines import widened, wrong_numbers
from recombine.pnc.workbench import Workbench

__all__ = ["Elastic", "elastic", "fisher"]

AT_ONCE = 2**28  # gradients of single samples held in memory, in numbers


@dataclass(frozen=True)
class Elastic:
    """The target with new rows, all of it trained, its weights held by what they meant for its own classes (B8).

    The Fisher information is of the images of the target's own classes that are in use, also with
    `use_target_data=false`: EWC brings it along from the training of the target, and none of these images trains.
    """

    optimizer: Callable
    """Constructor from parameter groups."""
    name: str = "ewc"
    strengths: Sequence[float] = (1e2, 1e3, 1e4)
    """Lambdas to try; the best mean of old and new accuracy on the images kept for choices decides."""
    epochs: float = 20
    min_steps: int = 600

    def __post_init__(self) -> None:
        wrong = wrong_numbers(self, "strengths")
        given = list(self.strengths) if isinstance(self.strengths, Sequence) else []
        if not given or any(not isinstance(s, int | float) or isinstance(s, bool) or s < 0 for s in given):
            wrong.append(f"method.strengths={self.strengths}: a list of numbers, such as method.strengths=[100,1000]")
        if wrong:
            raise ConfigError(wrong)


def fisher(model: Model, loader: Loader) -> dict[str, Tensor]:
    """Diagonal empirical Fisher information by parameter of `model.net`: mean over samples of (d log p(y|x))^2."""
    parameters = {name: value.detach() for name, value in model.net.named_parameters()}
    buffers = dict(model.net.named_buffers())

    def loss(values: Mapping[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        logits = functional_call(model.net, (values, buffers), (image[None],))
        return F.cross_entropy(logits.float(), label[None])

    gradients = vmap(grad(loss), (None, 0, 0))
    rows = max(1, AT_ONCE // sum(value.numel() for value in parameters.values()))
    total = {name: torch.zeros_like(value) for name, value in parameters.items()}
    count = torch.zeros((), device=next(iter(total.values())).device)
    with closing(loader.epoch(0)) as batches:
        for batch in batches:
            images = model.preprocess(batch.images)
            for some, labels in zip(images.split(rows), batch.labels.split(rows), strict=True):
                for name, each in gradients(parameters, some, labels).items():
                    total[name] += each.square().sum(0)
            count += len(batch.labels)
    all_reduce_sum(count)
    return {name: all_reduce_sum(value) / count for name, value in total.items()}


class _Elastic(Method):
    """Cross entropy in the joint label space and 1/2 sum_j k_j (theta_j - theta*_j)^2 over the target's parameters."""

    frozen = ("target",)

    def __init__(self, net: Model, target: Model, stiffness: Mapping[str, Tensor]) -> None:
        super().__init__(net)
        self.target, self.stiffness = target, stiffness

    def forward(self, batch: Batch) -> Step:
        """The loss of a batch of both kinds, or of cloned classes alone."""
        loss = F.cross_entropy(self.net(batch.images).float(), batch.labels)
        held = self.held()
        return Step(loss + held, {"loss": (loss + held).detach(), "xe": loss.detach(), "held": held.detach()})

    def held(self) -> Tensor:
        """The penalty, 0-d; new rows of the classifier are free."""
        now, total = dict(self.net.net.named_parameters()), 0.0
        for name, old in self.target.net.named_parameters():
            same = now[name] if now[name].shape == old.shape else now[name][: len(old)]
            total = total + (self.stiffness[name] * (same - old).square()).sum()
        return total / 2


def elastic(bench: Workbench, method: Elastic) -> nn.Module:
    """The best of a copy of the target with new rows for each strength.

    Deviation: k_j = lambda F_j goes no higher than 1 / learning rate, where a gradient step already puts a weight back
    to its old value; without this limit the largest of the F_j make training diverge.
    """
    information = fisher(bench.target, bench.own_loader())
    rate = method.optimizer([nn.Parameter(torch.zeros(1))]).param_groups[0]["lr"]
    loader, _ = bench.joint_loader(bench.cfg.batch_size)
    loader = bench.long_enough(loader, method.epochs, method.min_steps)
    best, highest = None, -1.0
    for strength in method.strengths:
        stiffness = {name: (strength * value).clamp(max=1 / rate) for name, value in information.items()}
        training = _Elastic(widened(bench), bench.target, stiffness)
        bench.fit(training, loader, f"finetune/{strength:g}", method.epochs, method.optimizer)
        score = bench.average(training.net.eval(), "select")
        if score > highest:
            best, highest = training.net, score
            bench.facts["strength"] = float(strength)
    bench.facts["samples_original"] = float(len(bench.part(bench.original, "train")))
    return best
