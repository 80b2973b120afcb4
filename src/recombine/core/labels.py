"""Labels that stand for no class. Imports nothing: settings are checked without torch."""

__all__ = ["IGNORE", "OWN_FOLDERS"]

IGNORE = 255
"""The label of pixels that have no class: neither trained on nor measured."""
OWN_FOLDERS = ("folder", "masks", "boxes")
"""Data sets that are somebody's own files, which others may call so too."""
