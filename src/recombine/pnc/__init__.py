"""Partial Network Cloning: a part of one trained network copied into another, removable (Ye et al., CVPR 2023).

from recombine import pnc

cloned = pnc.attach(timm_model, "clone.safetensors")    # logits of its own classes, then of the cloned ones
cloned = pnc.attach(cloned, "another.safetensors")      # the classes of a second clone come after those
cloned.detach("clone")                                  # one clone less; the others say what they said
timm_model = cloned.restore()                           # as it was, bit for bit

The paper's full text was not at hand. Its abstract, first page, two captions and summaries by others say that the
cloned part is found by local-performance-based pruning, with weights fixed; everything finer here is our reading.
"""

from recombine.pnc.clone.file import attach, cards, load, save
from recombine.pnc.clone.network import Clone, ClonedNetwork

__all__ = ["Clone", "ClonedNetwork", "attach", "cards", "load", "save"]
