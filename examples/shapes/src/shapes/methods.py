"""A transfer method."""

from torch import Tensor
from torch.nn import functional as F

from recombine.core.types import Batch, Step
from recombine.models import Model
from recombine.transfer.method import Transfer
from recombine.transfer.teacher_cache import FrozenTeachers

__all__ = ["MeanSquaredError"]


class MeanSquaredError(Transfer):
    """L = weight * mean (z_student - z_teacher)^2 over centred logits (Ba and Caruana, 2014)."""

    reads_labels = False

    def __init__(self, net: Model, teachers: FrozenTeachers, *, name: str, weight: float = 1.0) -> None:
        super().__init__(net, name=name, teachers=teachers)
        self.weight = weight

    def forward(self, batch: Batch) -> Step:
        """The loss of one batch; nothing here may wait for the device."""
        student, (teacher,) = self.net(batch.images), self.teachers(batch)
        loss = self.weight * F.mse_loss(_centred(student), _centred(teacher))
        return Step(loss, {"loss": loss.detach()})


def _centred(logits: Tensor) -> Tensor:
    return logits - logits.mean(1, keepdim=True)
