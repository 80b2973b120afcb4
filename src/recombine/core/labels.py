"""What data have for labels, in the words of messages. Imports nothing: settings are checked without torch."""

__all__ = ["IGNORE", "LABELS", "OWN_FOLDERS"]

IGNORE = 255
"""The label of pixels that have no class: neither trained on nor measured."""
OWN_FOLDERS = ("folder", "masks", "boxes")
"""Data sets that are somebody's own files, which others may call so too."""
LABELS = {
    "classification": "a label for each image",
    "segmentation": "a label for every pixel",
    "detection": "boxes around objects",
}
"""What data have, by what networks learn from them."""
