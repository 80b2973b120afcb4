"""What the learned skip weights look like (section 7.5, figures 3 to 6)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import matplotlib as mpl
import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from recombine.core.distributed import gather
from recombine.patch.delta import Delta
from recombine.patch.patched import Patched
from recombine.report.style import INK, save, styled
from recombine.run.run import Run

__all__ = ["draw", "recording", "skip_weights"]


@contextmanager
def recording(patched: Patched) -> Iterator[list[list[Tensor]]]:
    """Keep the skip weights of every sample that `patched` sees meanwhile: batches [B, K], a list a block."""
    blocks = patched.patch.blocks if isinstance(patched.patch, Delta) else []
    kept: list[list[Tensor]] = [[] for _ in blocks]
    handles = [
        block.weights.register_forward_hook(lambda _, __, alpha, k=k: kept[k].append(alpha.detach().float()))
        for k, block in enumerate(blocks)
    ]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()


def skip_weights(run: Run, patched: Patched, name: str, recorded: Sequence[Sequence[Tensor]]) -> dict[str, list]:
    """Weights over all test samples: picture, arrays and table of this run; their means by block for the row."""
    if not recorded:
        return {}
    weights = [_together(batches, len(edges)) for batches, edges in zip(recorded, patched.patch.pairs, strict=True)]
    blocks = patched.patch.block_names
    means = {f"alpha_{block}": value.mean(0).tolist() for block, value in zip(blocks, weights, strict=True)}
    if run.main:
        pairs = patched.patch.pairs
        path = save(draw(blocks, pairs, weights), run.dir / "plots" / f"skip_weights_{name}.png")
        run.tracker.image(f"skip_weights_{name}", path)
        arrays = {f"{k}": value.numpy() for k, value in enumerate(weights)}
        edges = {f"edges{k}": np.array(value) for k, value in enumerate(pairs)}
        np.savez_compressed(run.dir / f"skip_weights_{name}.npz", blocks=np.array(blocks), **arrays, **edges)
        rows = [
            [block, j, i, float(value[:, k].mean()), float(value[:, k].std(correction=0))]
            for block, edges_, value in zip(blocks, pairs, weights, strict=True)
            for k, (j, i) in enumerate(edges_)
        ]
        run.tracker.table(f"skip_weights_{name}", ["block", "from", "to", "mean", "std"], rows)
    return means


def _together(batches: Sequence[Tensor], count: int) -> Tensor:
    """What all processes recorded of a block, [N, K] on the CPU."""
    own = torch.cat([torch.zeros(0, count), *(batch.cpu() for batch in batches)])
    return torch.cat(gather(own))


@styled
def draw(blocks: Sequence[str], pairs: Sequence[Sequence[tuple[int, int]]], weights: Sequence[Tensor]) -> Figure:
    """Mean, standard deviation and histogram of the weights, a column a block; line = to, column = from.

    The scales are 0 to 1 for means and histograms, 0 to 0.5 for deviations, wider where learned weights leave these.
    """
    figure, axes = plt.subplots(3, len(blocks), figsize=(1.2 + 2.6 * len(blocks), 7.4), squeeze=False)
    for column, (block, edges, value) in enumerate(zip(blocks, pairs, weights, strict=True)):
        spread = value.std(0, correction=0)
        _matrix(axes[0, column], f"{block}: mean", edges, value.mean(0).tolist(), 1.0)
        _matrix(axes[1, column], f"{block}: std", edges, spread.tolist(), 0.5)
        low, high = min(0.0, float(value.min())), max(1.0, float(value.max()))
        axes[2, column].hist(value.flatten().numpy(), bins=40, range=(low, high), color=mpl.colormaps["viridis"](0.35))
        axes[2, column].set_xlabel("weight, all samples and skips")
    figure.tight_layout()
    plt.close(figure)
    return figure


def _matrix(axis: Axes, title: str, edges: Sequence[tuple[int, int]], numbers: Sequence[float], top: float) -> None:
    """A number for each connection as a coloured field, on a scale from 0 to `top` or as far as the numbers go."""
    n = max(i for _, i in edges)
    low, high = min(0.0, *numbers), max(top, *numbers)
    matrix = np.full((n, n), np.nan)
    for (j, i), number in zip(edges, numbers, strict=True):
        matrix[i - 1, j] = number
        if n <= 6:
            tint = "white" if number < low + 0.6 * (high - low) else INK
            axis.text(j, i - 1, f"{number:.2f}", ha="center", va="center", color=tint, fontsize=8)
    colours = mpl.colormaps["viridis"].with_extremes(bad="white")
    image = axis.imshow(matrix, vmin=low, vmax=high, cmap=colours)
    axis.grid(False)
    axis.set_title(title)
    axis.set_xticks(range(n), [str(j) for j in range(n)])
    axis.set_yticks(range(n), [str(i) for i in range(1, n + 1)])
    axis.set_xlabel("from node")
    axis.set_ylabel("to node")
    axis.figure.colorbar(image, ax=axis, fraction=0.046)
