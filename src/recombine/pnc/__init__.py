"""Partial Network Cloning: a part of one trained network copied into another, removable (Ye et al., CVPR 2023).

from recombine import pnc

cloned = pnc.attach(timm_model, "clone.safetensors")    # logits of its own classes, then of the cloned ones
cloned.attach("another.safetensors")                    # the classes of a second clone come after those
cloned.list()                                           # the cards of both, by name
cloned.detach("clone")                                  # takes off one; the logits of the others stay as they are
timm_model = cloned.restore()                           # takes off all: bit for bit what it was

The paper's full text was not at hand. Its abstract, first page, two captions and summaries by others say that the
cloned part is found by local-performance-based pruning, with weights fixed; everything finer here is our reading.
"""

from typing import TYPE_CHECKING

from recombine.core.lazy import lazy_names

if TYPE_CHECKING:
    from recombine.pnc.clone.cards import read_cards
    from recombine.pnc.clone.cloned_network import ClonedNetwork, attach
    from recombine.pnc.clone.part import Clone
    from recombine.pnc.clone.serialization import load_clones, save_clone

__all__ = ["Clone", "ClonedNetwork", "attach", "load_clones", "read_cards", "save_clone"]
_MODULES = {
    "Clone": "recombine.pnc.clone.part",
    "ClonedNetwork": "recombine.pnc.clone.cloned_network",
    "attach": "recombine.pnc.clone.cloned_network",
    "load_clones": "recombine.pnc.clone.serialization",
    "read_cards": "recombine.pnc.clone.cards",
    "save_clone": "recombine.pnc.clone.serialization",
}
__getattr__ = lazy_names(__name__, _MODULES)
