"""What all transfer methods share.

A constructor's parameters say what a method needs; the recipe supplies `net` (the student), `teachers`, `initial` (the
student as it was), `partner` (a teacher that trains too), `samples` and `batch_size` to those that ask for them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from recombine.core.errors import ConfigError
from recombine.core.types import Step
from recombine.engine.method import Method
from recombine.models import Model
from recombine.transfer.options import one_of
from recombine.transfer.teacher_cache import FrozenTeachers

__all__ = ["Ensemble", "Transfer", "share", "step"]

BATCHNORM = ("adapt", "keep")


class Transfer(Method):
    """A student that trains beside frozen networks.

    Deviation: the authors log knowledge gain and loss on the training samples for every method, and flips too. Here a
    method logs what its own forward passes tell: gain and loss where the initial student is asked anyway (kl_dp and
    its ablations), flips where a teacher is asked and labels are read. A pass more for each step would only fill a log.
    """

    reads_labels = True
    """Whether the labels of training samples are used; if not, the recipe hands over none."""
    reads_logits = True
    """Whether only the logits of frozen networks are used, so that remembered ones do."""
    many_teachers = False

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
        one_of("batchnorm", batchnorm, BATCHNORM)
        self.name, self.batchnorm = name, batchnorm
        for part, networks in (("teachers", teachers), ("initial", initial)):
            if networks is not None:
                setattr(self, part, networks)
                self.frozen = (*self.frozen, part)
        if teachers is not None and len(teachers.models) > 1 and not self.many_teachers:
            raise ConfigError(
                f"method={name} takes one teacher at a time, not {len(teachers.models)}; method=kl_dp takes many, and "
                "combine=sequential gives one after the other"
            )

    def train(self, mode: bool = True) -> Transfer:
        """Switch to training; the BatchNorms of all networks keep their statistics if they are to."""
        super().train(mode)
        if self.batchnorm == "keep":
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def on_epoch(self, epoch: int) -> None:
        """Tell remembered logits which views the epoch shows."""
        for part in self.frozen:
            self.get_submodule(part).epoch = epoch

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Run a block with the weights in `net` that would be published now."""
        yield

    def publish(self) -> None:
        """Put the weights to be published into `net`, after training."""


class Ensemble(Transfer):
    """No training: the more confident of the initial student and the teacher answers (section 3.6)."""

    reads_labels = False

    def __init__(self, net: Model, *, name: str) -> None:
        super().__init__(net, name=name)


def share(mask: Tensor) -> Tensor:
    """Samples of the batch that a bool mask [B] holds, percent, 0-d and on the device."""
    return 100 * mask.float().mean()


def step(loss: Tensor, logs: dict[str, Tensor]) -> Step:
    """A loss with its logs, all detached."""
    return Step(loss, {"loss": loss.detach(), **{name: value.detach() for name, value in logs.items()}})
