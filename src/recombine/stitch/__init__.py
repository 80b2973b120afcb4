"""Stitching for Neuroevolution: two trained networks joined, and offspring that beat both (Guijt et al., 2024).

from recombine import stitch

model = stitch.load("offspring.safetensors")    # uint8 images [B, 3, H, W] in, logits out; its parents are not needed

What could not be read of the paper is taken from the authors' code; both the paper and its companion of GECCO 2024 are
about these experiments.
"""

from typing import TYPE_CHECKING

from recombine.core.lazy import lazy_names

if TYPE_CHECKING:
    from recombine.stitch.offspring import export, load, offspring_card, read_card, save

__all__ = ["export", "load", "offspring_card", "read_card", "save"]
__getattr__ = lazy_names(__name__, dict.fromkeys(__all__, "recombine.stitch.offspring"))
