"""Where a part of the source can be hung into the target: the candidates (R_t, R_s) of a pair."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from recombine.models.blocks import ancestors
from recombine.models.cuts import Cut, cuts
from recombine.models.graph import Traced

__all__ = ["Position", "clones_layers", "find_positions", "find_probe", "list_cuts"]


class Position(NamedTuple):
    """Where a branch leaves the target and enters the source."""

    number: int
    """R_t: how many of the target's blocks are shared; 0 is the image itself, which shares nothing."""
    target: Cut
    source: Cut
    source_number: int
    """R_s: how many of the source's blocks are left out."""

    @property
    def label(self) -> str:
        """R3, or R3-2 where the source is entered at another cut than the target is left."""
        label = f"R{self.number}"
        return label if self.number == self.source_number else f"{label}-{self.source_number}"


def list_cuts(traced: Traced) -> tuple[Cut, ...]:
    """The images, then the cuts R = 1..L from input to output."""
    image = next(node for node in traced.graph.nodes if node.op == "placeholder")
    return (Cut("images", image, tuple(image.meta["shape"][1:]), 1.0), *cuts(traced))


def clones_layers(source: Traced, position: Position) -> bool:
    """Whether a layer of the source stands between the position and its classifier.

    Without one nothing of the source is cloned but rows of its classifier: new rows on an affine map of the target's
    features, a linear probe.
    """
    (features,) = source.node(source.head).all_input_nodes
    between = ancestors([features], stop=[position.source.node]) - {position.source.node}
    layers = (source.net.get_submodule(str(node.target)) for node in between if node.op == "call_module")
    return any(parameter.ndim > 1 for layer in layers for parameter in layer.parameters())


def find_positions(target: Traced, source: Traced, align: str = "scale") -> tuple[Position, ...]:
    """The candidate positions R_t = 0..L of a pair from input to output, of one R_t by R_s.

    The source is entered where it has scaled the image down as much as the target has, at the first such cut for the
    target's first, and so on; if nowhere, at the nearest larger scale, else at its last map. A feature vector meets
    only a feature vector. Of several cuts of one scale, the last would enter a copy of the target a block too late.
    `align`: scale (this rule), all (every cut of the same kind) or whole (the image).
    """
    exits, others = list_cuts(target), list_cuts(source)
    found = [Position(0, exits[0], others[0], 0)]
    for number, cut in enumerate(exits[1:], start=1):
        entries = [place for place, other in enumerate(others) if place and len(other.shape) == len(cut.shape)]
        if align == "whole":
            entries = [0] if len(cut.shape) == 3 else []
        elif align == "scale" and entries:
            entries = [_match_scale(exits[1:number], cut, others, entries)]
        found += [Position(number, cut, others[place], place) for place in entries]
    return tuple(found)


def find_probe(target: Traced, source: Traced) -> Position:
    """From what enters the target's classifier to what enters the source's: nothing between them is cloned."""
    exits, others = list_cuts(target), list_cuts(source)
    return Position(len(exits) - 1, exits[-1], others[-1], len(others) - 1)


def _match_scale(before: Sequence[Cut], cut: Cut, others: Sequence[Cut], entries: Sequence[int]) -> int:
    """The one of the source's `entries` that has scaled the image down as much as the target has at `cut`."""
    reached = min((others[place].factor for place in entries if others[place].factor >= cut.factor), default=None)
    alike = [place for place in entries if others[place].factor == reached] or entries[-1:]
    if reached != cut.factor:
        return alike[-1]
    same = [other for other in before if (other.factor, len(other.shape)) == (cut.factor, len(cut.shape))]
    return alike[min(len(same), len(alike) - 1)]
