"""Data sets by name, and their loaders: uint8 batches on the device, the same from every loader."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recombine.data.checks import check
    from recombine.data.dataset import Data, open_data, open_data_for
    from recombine.data.layouts import Found
    from recombine.data.storage import Arrays

__all__ = ["Arrays", "Data", "Found", "check", "open_data", "open_data_for"]
_HOMES = {
    "Arrays": "recombine.data.storage",
    "Found": "recombine.data.layouts",
    "Data": "recombine.data.dataset",
    "check": "recombine.data.checks",
    "open_data": "recombine.data.dataset",
    "open_data_for": "recombine.data.dataset",
}


def __getattr__(name: str) -> Any:
    """Names are imported when they are used: settings can be read without torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
