"""What a model is and costs: parameters, multiply-adds, origin of its weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from recombine.models.detection import Detector
from recombine.models.model import Model

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["describe", "flops", "summary"]


def flops(net: nn.Module, images: Tensor) -> int:
    """Floating-point operations of a network in eval mode on these images: 2 for a multiply-add."""
    fast_attention = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # the fused kernel is invisible to the counter
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            net(images)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_attention)
    return counter.get_total_flops()


def summary(model: Model) -> dict[str, Any]:
    """Parameters, trainable ones, multiply-adds of one image at the network's size, weights tag, claimed top-1.

    Multiply-adds are counted on a copy without storage: nothing is computed. Those of a detector are of its backbone
    with the pyramid; what follows depends on the image.
    """
    net: Any = deepcopy(model.net).eval().to("meta")
    net = net.backbone if isinstance(net, Detector) else net
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "macs": flops(net, torch.zeros(1, 3, model.size, model.size, device="meta")) // 2,
        "tag": model.tag,
        "claimed_accuracy": model.claimed_accuracy,
    }


def describe(models: Iterable[Model], measured: Mapping[str, float] | None = None, split: str = "test") -> Table:
    """A rich table with one row per model; `measured`: top-1 in percent by model name, on the images of `split`."""
    from rich.table import Table

    table = Table(title="Models")
    for column in ("model", "input", "parameters", "trainable", "MACs", "classes", "weights", "claimed top-1"):
        justify: Any = "left" if column in ("model", "weights") else "right"
        table.add_column(column, justify=justify, overflow="fold")
    if measured is not None:
        table.add_column(f"top-1 ({split})", justify="right")
    for model in models:
        costs = summary(model)
        claimed = "" if model.claimed_accuracy is None else f"{model.claimed_accuracy:.2f}"
        cells = [
            model.name,
            f"{model.size} px",
            f"{costs['parameters'] / 1e6:.2f} M",
            f"{100 * costs['trainable'] / max(costs['parameters'], 1):.0f} %",
            f"{costs['macs'] / 1e6:.1f} M",
            str(model.classes),
            model.tag,
            claimed,
        ]
        if measured is not None:
            cells.append(f"{measured[model.name]:.2f}" if model.name in measured else "")
        table.add_row(*cells)
    return table
