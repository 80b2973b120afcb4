"""Data sets by name, and their loaders: uint8 batches on the device, the same from every loader."""

from typing import TYPE_CHECKING

from recombine.core.lazy import lazy_names

if TYPE_CHECKING:
    from recombine.data.checks import check
    from recombine.data.dataset import Data, open_data, open_data_for
    from recombine.data.fingerprint import label_for
    from recombine.data.storage import ArrayReader, SourceSplits

__all__ = ["ArrayReader", "Data", "SourceSplits", "check", "label_for", "open_data", "open_data_for"]
_MODULES = {
    "ArrayReader": "recombine.data.storage",
    "SourceSplits": "recombine.data.storage",
    "Data": "recombine.data.dataset",
    "check": "recombine.data.checks",
    "label_for": "recombine.data.fingerprint",
    "open_data": "recombine.data.dataset",
    "open_data_for": "recombine.data.dataset",
}
__getattr__ = lazy_names(__name__, _MODULES)
