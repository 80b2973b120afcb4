"""Stitching for Neuroevolution: two trained networks joined, and offspring that beat both (Guijt et al., 2024).

from recombine import stitch

model = stitch.load("offspring.safetensors")    # uint8 images [B, 3, H, W] in, logits out; its parents are not needed

What could not be read of the paper is taken from the authors' code; both the paper and its companion of GECCO 2024 are
about these experiments.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recombine.stitch.offspring import export, load, offspring_card, read_card, save

__all__ = ["export", "load", "offspring_card", "read_card", "save"]


def __getattr__(name: str) -> Any:
    """Names are imported when they are used: settings can be read without torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("recombine.stitch.offspring"), name)
