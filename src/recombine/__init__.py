"""Recombine: compare, combine and extend networks that are already trained.

recombine.load(file)                the network of a student or offspring file
recombine.attach(network, file)     a network with a patch or clones on it; `list`, `detach(name)`, `restore()`
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from recombine.version import __version__

if TYPE_CHECKING:
    from recombine.attachments import attach, load

__all__ = ["__version__", "attach", "load"]


def __getattr__(name: str) -> Any:
    """Names are imported when they are used: help and settings need no torch."""
    if name not in ("attach", "load"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("recombine.attachments"), name)
