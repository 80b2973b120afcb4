"""What the learned skip weights look like (section 7.5, figures 3 to 6)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import matplotlib as mpl
import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from torch import Tensor

from src.core.run import Run
from src.patch.delta import Delta
from src.patch.patched import Patched
from src.report.style import INK, save, styled

__all__ = ["draw", "recording", "skip_weights"]


@contextmanager
def recording(patched: Patched) -> Iterator[list[list[Tensor]]]:
    """Keep the skip weights of every sample that `patched` sees meanwhile: batches [B, K], a list a block."""
    blocks = patched.patch.blocks if isinstance(patched.patch, Delta) else []
    kept: list[list[Tensor]] = [[] for _ in blocks]
    handles = [
        block.weights.register_forward_hook(lambda _, __, alpha, k=k: kept[k].append(alpha.float()))
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
    weights = [torch.cat(list(batches)).cpu() for batches in recorded]
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
            [block, j, i, float(value[:, k].mean()), float(value[:, k].std())]
            for block, edges_, value in zip(blocks, pairs, weights, strict=True)
            for k, (j, i) in enumerate(edges_)
        ]
        run.tracker.table(f"skip_weights_{name}", ["block", "from", "to", "mean", "std"], rows)
    return means


@styled
def draw(blocks: Sequence[str], pairs: Sequence[Sequence[tuple[int, int]]], weights: Sequence[Tensor]) -> Figure:
    """Mean, standard deviation and histogram of the weights, a column a block; line = to, column = from."""
    figure, axes = plt.subplots(3, len(blocks), figsize=(1.2 + 2.6 * len(blocks), 7.4), squeeze=False)
    colours = mpl.colormaps["viridis"].with_extremes(bad="white")
    for column, (block, edges, value) in enumerate(zip(blocks, pairs, weights, strict=True)):
        n = max(i for _, i in edges)
        for line, (title, numbers, top) in enumerate((("mean", value.mean(0), 1.0), ("std", value.std(0), 0.5))):
            matrix = np.full((n, n), np.nan)
            for (j, i), number in zip(edges, numbers.tolist(), strict=True):
                matrix[i - 1, j] = number
            axis = axes[line, column]
            image = axis.imshow(matrix, vmin=0, vmax=top, cmap=colours)
            axis.grid(False)
            axis.set_title(f"{block}: {title}")
            axis.set_xticks(range(n), [str(j) for j in range(n)])
            axis.set_yticks(range(n), [str(i) for i in range(1, n + 1)])
            axis.set_xlabel("from node")
            axis.set_ylabel("to node")
            for (j, i), number in zip(edges, numbers.tolist(), strict=True):
                if n <= 6:
                    tint = "white" if number < 0.6 * top else INK
                    axis.text(j, i - 1, f"{number:.2f}", ha="center", va="center", color=tint, fontsize=8)
            figure.colorbar(image, ax=axis, fraction=0.046)
        axes[2, column].hist(value.flatten().numpy(), bins=40, range=(0, 1), color=colours(0.35))
        axes[2, column].set_xlabel("weight, all samples and skips")
    figure.tight_layout()
    plt.close(figure)
    return figure
