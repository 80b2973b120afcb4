"""Clones of files, measured like those that were just learned: on any data with the same classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recombine.core.errors import ConfigError
from recombine.pnc.clone import file
from recombine.pnc.clone.network import ClonedNetwork
from recombine.pnc.workbench import Workbench

__all__ = ["Saved", "attached"]


@dataclass(frozen=True)
class Saved:
    """Nothing is learned: the clones of `files` are put on the target, in the order of the sources."""

    files: Sequence[str] = ()
    name: str = "from_file"

    def __post_init__(self) -> None:
        if isinstance(self.files, str) or not self.files:
            raise ConfigError(f"method.files={self.files}: give a list, such as 'method.files=[clone.safetensors]'")
        if absent := [name for name in self.files if not Path(name).is_file()]:
            raise ConfigError(f"method.files: there is no {', '.join(absent)}")

    @property
    def cards(self) -> list[dict[str, Any]]:
        """Of all clones; ConfigError for what is no clone file."""
        return [card for name in self.files for card in file.cards(name).values()]

    @property
    def needs_sources(self) -> bool:
        """Whether a clone is a reference to its source."""
        return any(card["reference"] for card in self.cards)


def attached(benches: Sequence[Workbench], method: Saved) -> ClonedNetwork:
    """The target with the clones; ConfigError if their classes are not those of the sources, in order."""
    cloned = ClonedNetwork(benches[0].target, benches[0].original.class_names)
    sources = [bench.source for bench in benches] if method.needs_sources else []
    for name in method.files:
        file.attach(cloned, name, sources=sources)
    held = [list(clone.class_names) for clone in cloned.clones.values()]
    if held != (asked := [bench.names for bench in benches]):
        cloned.restore()
        raise ConfigError(
            f"method.files holds clones of the classes {held} and the config names {asked}: set clone=, and "
            f"dataset@source_data= (or sources=, one entry a clone), to what the files were made with"
        )
    return cloned.to(benches[0].run.device)
