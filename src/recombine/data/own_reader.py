"""Data sets that a function of somebody's own reads: `dataset.reader`."""

from __future__ import annotations

from pathlib import Path

from recombine.core.builds import Node, load_target
from recombine.data.sources import DatasetInfo, Source

__all__ = ["open_own"]


def open_own(name: str, reader: Node, folder: Path) -> Source:
    """The set that a reader of somebody's own gives for a folder."""
    options = {key: value for key, value in reader.items() if key != "_target_"}
    found = load_target("dataset.reader", reader["_target_"])(folder=folder, **options)
    # stored sets are found by their place: that of another reader, or of other options, is another one
    return Source(name, DatasetInfo(), folder / "-".join(str(reader[key]) for key in reader), found)
