"""The base of all transfer methods, and the one that trains nothing.

A constructor's parameters say what a method needs; the recipe supplies `net` (the student), `teachers`, `initial` (the
student as it was), `partner` (a teacher that trains too), `samples`, `batch_size` and `epochs` to those that ask for
them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from recombine.core.errors import ConfigError
from recombine.core.types import Step
from recombine.engine.method import Method, keep_statistics
from recombine.models import Model
from recombine.transfer.method_settings import takes_one_teacher
from recombine.transfer.teacher_cache import FrozenTeachers

__all__ = ["Ensemble", "Transfer", "make_step"]


class Transfer(Method):
    """A student that trains beside frozen networks; a method of your own derives from it.

    Deviation: the authors log knowledge gain and loss on the training samples for every method, and flips too. Here a
    method logs what its forward passes show: gain and loss where the initial student is evaluated anyway (kl_dp
    and its ablations), flips where a teacher is evaluated and labels are read. Another forward pass in each step would
    only fill a log.

    Example:
        # my_methods.py, used by: method._target_=my_methods.SquaredError
        class SquaredError(Transfer):
            reads_labels = False

            def forward(self, batch):
                (target,) = self.teachers(batch)
                return make_step((self.net(batch.images) - target).square().mean(), {})
    """

    reads_labels = True
    """Whether the labels of training samples are used; if not, the recipe passes none."""
    reads_logits = True
    """Whether only the logits of frozen networks are used, so that cached ones do."""
    many_teachers = False
    """Whether several teachers can be learned from at once."""
    net: Model
    teachers: FrozenTeachers
    initial: FrozenTeachers

    def __init__(
        self,
        net: Model,
        *,
        name: str,
        teachers: FrozenTeachers | None = None,
        initial: FrozenTeachers | None = None,
        batchnorm: str = "adapt",
    ) -> None:
        """`name` is the method's in rows; `batchnorm` adapt or keep: whether running statistics follow the data."""
        super().__init__(net)
        self.name, self.batchnorm = name, batchnorm
        for part, networks in (("teachers", teachers), ("initial", initial)):
            if networks is not None:
                setattr(self, part, networks)
                self.frozen = (*self.frozen, part)
        if teachers is not None and len(teachers.models) > 1 and not self.many_teachers:
            raise ConfigError(takes_one_teacher(name, len(teachers.models)))

    def train(self, mode: bool = True) -> Transfer:
        """Switch to training; with `batchnorm` keep, the running statistics of all networks stay."""
        super().train(mode)
        if self.batchnorm == "keep":
            keep_statistics(self)
        return self

    def on_epoch(self, epoch: int) -> None:
        """Set the epoch that decides which cached logits are looked up."""
        for part in self.frozen:
            getattr(self, part).epoch = epoch

    @contextmanager
    def evaluation_weights(self) -> Iterator[None]:
        """Run a block with the weights in `net` that would be published now."""
        yield

    def publish(self) -> None:
        """Put the weights to be published into `net`, after training."""


class Ensemble(Transfer):
    """No training: the more confident of the initial student and the teacher predicts."""

    reads_labels = False

    def __init__(self, net: Model, *, name: str) -> None:
        super().__init__(net, name=name)


def make_step(loss: Tensor, logs: dict[str, Tensor]) -> Step:
    """A loss with its logs, all detached."""
    return Step(loss, {"loss": loss.detach(), **{name: value.detach() for name, value in logs.items()}})
