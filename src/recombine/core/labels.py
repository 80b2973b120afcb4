"""Labels that stand for no class. Imports nothing: settings are checked without torch."""

__all__ = ["IGNORE"]

IGNORE = 255
"""The label of pixels that have no class: neither trained on nor measured."""
