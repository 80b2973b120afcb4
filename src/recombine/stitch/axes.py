"""Which axis of a value holds what: maps, tokens and vectors, told from what only has as many axes.

Attention has values of four axes, [B, heads, N, d], that are no maps, and flattened maps [B, C, N] are no tokens. So
axes are followed from the images on: layers and operations that keep the axes of a value pass them on, permutations
move them, and what is folded into other axes has none until it has the axes of an earlier value again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import fx, nn
from torch.fx import Node

__all__ = ["LAYOUTS", "find_layouts"]

LAYOUTS = {"BCHW": "NCHW", "BHWC": "NHWC", "BNC": "BNC", "BC": "NC"}
"""Axes of what can be stitched -> the name of its layout: maps, tokens, vectors."""
FOLDED = {"BCHW": "BCN", "BHWC": "BNC"}
"""Axes of maps -> those with height and width flattened."""
MOVES = {"permute", "transpose", "swapaxes", "movedim", "t"}
MIXES = {"matmul", "bmm", "einsum", "scaled_dot_product_attention"}
MAPS = (nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d, nn.MaxPool2d, nn.AdaptiveAvgPool2d, nn.AvgPool2d)


class Axes(NamedTuple):
    """The axes of a value: one letter each, empty if they are not known; and the last known ones before it."""

    letters: str
    known: tuple[str, tuple[int, ...]]
    """Letters and shape."""


def find_layouts(graph: fx.Graph, modules: Mapping[str, nn.Module]) -> dict[Node, str]:
    """The layout of every value of a traced graph (nodes carry `meta["shape"]` for one image) that has one."""
    axes: dict[Node, Axes] = {}
    first = next(node for node in graph.nodes if node.op == "placeholder")
    axes[first] = Axes("BCHW", ("BCHW", tuple(first.meta["shape"])))
    for node in graph.nodes:
        sources = [source for source in node.all_input_nodes if source in axes]
        if sources and node not in axes:
            shape = tuple(node.meta.get("shape", ()))
            letters = _letters(node, shape, sources, axes, modules)
            known = (letters, shape) if letters else _latest(sources, axes)
            axes[node] = Axes(letters, known)
    return {node: LAYOUTS[found.letters] for node, found in axes.items() if found.letters in LAYOUTS}


def _latest(sources: Sequence[Node], axes: Mapping[Node, Axes]) -> tuple[str, tuple[int, ...]]:
    """The last known axes of the largest of several values."""
    return max((axes[source].known for source in sources), key=lambda known: len(known[0]))


def _letters(
    node: Node, shape: tuple[int, ...], sources: Sequence[Node], axes: Mapping[Node, Axes], modules: Mapping[str, Any]
) -> str:
    """The axes of a value from those of what it is computed from; empty if they are not known."""
    layer = modules[str(node.target)] if node.op == "call_module" else None
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if not shape:
        return ""
    if len(shape) == 2:
        return "BC"
    if len(shape) == 4 and (isinstance(layer, MAPS) or name in ("conv2d", "batch_norm")):
        return "BCHW"
    if name in MOVES:
        return _moved(axes[sources[0]].letters, name, node)
    if name in MIXES:
        return ""
    alike = [source for source in sources if len(axes[source].letters) == len(shape)]
    if alike:
        return axes[max(alike, key=lambda source: source.meta["shape"] == shape)].letters
    return _regained(shape, *_latest(sources, axes))


def _moved(letters: str, name: str, node: Node) -> str:
    """Permuted axes, by the operation itself on a value whose sizes tell its axes."""
    if not letters or len(node.all_input_nodes) > 1:
        return ""
    probe = torch.empty(tuple(range(2, len(letters) + 2)), device="meta")
    moved = getattr(probe, name)(*node.args[1:], **node.kwargs).shape
    return "".join(letters[size - 2] for size in moved)


def _regained(shape: tuple[int, ...], letters: str, before: tuple[int, ...]) -> str:
    """The axes of a folded value whose sizes are those of an earlier one in all but channels.

    Maps may have become tokens, or smaller by one factor in height and width.
    """
    for candidate, sizes in _views(letters, before):
        if len(candidate) != len(shape):
            continue
        ratios = {letter: old / size for letter, size, old in zip(candidate, shape, sizes, strict=True)}
        smaller = ratios.get("H", 1) == ratios.get("W", 1) >= 1 and float(ratios.get("H", 1)).is_integer()
        if smaller and ratios["B"] == ratios.get("N", 1) == 1:
            return candidate
    return ""


def _views(letters: str, sizes: tuple[int, ...]) -> list[tuple[str, tuple[int, ...]]]:
    """The axes themselves, and of maps those with height and width flattened into one."""
    views = [(letters, sizes)]
    if letters in FOLDED:
        height = letters.index("H")
        views.append((FOLDED[letters], (*sizes[:height], sizes[height] * sizes[height + 1], *sizes[height + 2 :])))
    return views
