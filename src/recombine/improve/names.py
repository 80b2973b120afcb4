"""Names of the networks that the guided command is given."""

from __future__ import annotations

from pathlib import Path

from recombine.models.weight_files import SUFFIXES

__all__ = ["short_name", "zoo_networks"]


def zoo_networks(given: list[str], network: str) -> list[str]:
    """The networks that `--zoo` names, one by one or by a folder of checkpoints; without `network` itself."""
    found: list[str] = []
    for text in given:
        files = sorted(file for file in Path(text).iterdir() if file.suffix in SUFFIXES) if Path(text).is_dir() else []
        found += [str(file) for file in files] or [text]
    return [text for text in dict.fromkeys(found) if short_name(text) != short_name(network)]


def short_name(network: str) -> str:
    """A file name for a network: `timm:resnet18.a1_in1k` -> `resnet18_a1_in1k`."""
    bare = Path(network).stem if Path(network).suffix in SUFFIXES else network.rpartition(":")[2]
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in bare)
