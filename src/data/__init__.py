"""Data sets by name, and their loaders: uint8 batches on the device, the same from every loader."""

# Data lives in a module of its own: here the names `torch` and `ffcv` would mean the loaders' modules.
from src.data.dataset import Data, check, open_data, open_data_for

__all__ = ["Data", "check", "open_data", "open_data_for"]
