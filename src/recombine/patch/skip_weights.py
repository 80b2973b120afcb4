"""What the learned skip weights look like (figures 3 to 6 of the paper)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recombine.core.distributed import gather
from recombine.core.files import replacing
from recombine.patch.delta import Delta
from recombine.patch.patched import TaskNetwork
from recombine.patch.plots import plot_skip_weights
from recombine.report.style import save
from recombine.run.run import Run

__all__ = ["record_skip_weights", "save_skip_weights"]


@contextmanager
def record_skip_weights(network: TaskNetwork) -> Iterator[list[list[Tensor]]]:
    """Keep the skip weights of every sample that `network` sees meanwhile: a list of [B, K] for each block."""
    modules: list[Any] = list(network.patch.blocks) if isinstance(network.patch, Delta) else []
    kept: list[list[Tensor]] = [[] for _ in modules]
    handles = [
        block.weights.register_forward_hook(lambda _, __, alpha, k=k: kept[k].append(alpha.detach().float()))
        for k, block in enumerate(modules)
    ]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()


def save_skip_weights(
    run: Run, network: TaskNetwork, name: str, recorded: Sequence[Sequence[Tensor]]
) -> dict[str, list]:
    """Weights over all test samples: plot, arrays and table of this run; their means by block for the row."""
    if not isinstance(network.patch, Delta):
        return {}
    blocks, pairs = network.patch.block_names, network.patch.pairs
    weights = [_gather_batches(batches, len(edges)) for batches, edges in zip(recorded, pairs, strict=True)]
    means = {f"alpha_{block}": value.mean(0).tolist() for block, value in zip(blocks, weights, strict=True)}
    if run.main:
        path = save(plot_skip_weights(blocks, pairs, weights), run.dir / "plots" / f"skip_weights_{name}.png")
        run.tracker.image(
            f"skip_weights_{name}", path, f"Weights of the skips of {name} over its test images, by block"
        )
        arrays: dict[str, Any] = {f"{k}": value.numpy() for k, value in enumerate(weights)}
        arrays |= {f"edges{k}": np.array(value) for k, value in enumerate(pairs)}
        with replacing(run.dir / f"skip_weights_{name}.npz") as temporary, open(temporary, "wb") as stream:
            np.savez_compressed(stream, blocks=np.array(blocks), **arrays)
        rows = [
            [block, j, i, float(value[:, k].mean()), float(value[:, k].std(correction=0))]
            for block, edges_, value in zip(blocks, pairs, weights, strict=True)
            for k, (j, i) in enumerate(edges_)
        ]
        run.tracker.table(f"skip_weights_{name}", ["block", "from", "to", "mean", "std"], rows)
    return means


def _gather_batches(batches: Sequence[Tensor], count: int) -> Tensor:
    """What all processes recorded of a block, [N, K] on the CPU."""
    here = torch.cat([torch.zeros(0, count), *(batch.cpu() for batch in batches)])
    return torch.cat(gather(here))
