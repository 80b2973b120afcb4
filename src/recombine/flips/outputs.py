"""Which outputs of a network stand for the classes of the data, where it was trained for other or more classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from recombine.data.tree import plain_name

if TYPE_CHECKING:
    from recombine.data import Data

__all__ = ["RestrictedOutputs", "match_outputs"]


def match_outputs(class_names: Sequence[str] | None, classes: int, data: Data) -> dict[int, int] | None:
    """From the labels of the data to outputs of a network with these classes: as the label map says, else by name.

    None if a class of the data is not, or not with certainty, among the network's.
    """
    as_they_are = {label: label for label in range(classes)} if classes == data.classes else None
    labels = data.labels_in_use
    if data.settings.label_map is not None:
        return as_they_are or ({label: label for label in labels} if max(labels) < classes else None)
    named: dict[str, list[int]] = {}
    for output, name in enumerate(class_names or ()):
        named.setdefault(plain_name(name), []).append(output)
    found = {label: named.get(plain_name(data.class_names[label]), []) for label in labels}
    if found and all(len(outputs) == 1 for outputs in found.values()):
        return {label: outputs[0] for label, outputs in found.items()}
    return as_they_are


class RestrictedOutputs(nn.Module):
    """A network that chooses among some of its classes: logits [B, classes] in the order of other labels."""

    outputs: Tensor

    def __init__(self, net: nn.Module, outputs: Mapping[int, int], classes: int) -> None:
        """`outputs`: from label to output of `net`; the logits of labels without one are -inf."""
        super().__init__()
        self.net = net
        self.register_buffer("outputs", torch.tensor([outputs.get(label, -1) for label in range(classes)]))

    def forward(self, images: Tensor) -> Tensor:
        """Logits of normalised images."""
        logits = self.net(images).float()[:, self.outputs.clamp(min=0)]
        return logits.masked_fill(self.outputs < 0, -torch.inf)
