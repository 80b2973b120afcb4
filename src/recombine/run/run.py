"""Run: one configured job, as recipes and the engine see it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from recombine.run.signals import StopSignals
from recombine.run.tracking import Tracker

__all__ = ["Run"]


@dataclass
class Run:
    """One configured job: its directory, seed, device, rank and tracker."""

    dir: Path
    """Where everything of this run is written; only rank 0 writes."""
    id: str
    """Name of the directory; ends in the hash of the config."""
    group: str
    """Shared by runs that differ only in the seed."""
    entry: str
    seed: int
    device: torch.device
    tracker: Tracker
    signals: StopSignals
    cache: Path
    """For what can be computed again and shared by runs."""
    rank: int = 0
    world: int = 1
    resume: str = "auto"
    """auto: continue if there is something; never: the directory was emptied; must: there is something."""
    stats: dict[str, Any] = field(default_factory=dict)
    """Facts for the provenance, such as `images_per_second`; filled by whoever measures them."""

    @property
    def main(self) -> bool:
        """Whether this process is the one that writes and prints."""
        return self.rank == 0

    def note_file(self, path: Path) -> None:
        """Note a network, patch or clone that the run leaves, for its provenance and for who reads the terminal."""
        self.stats.setdefault("files", []).append(str(path))

    def stop_requested(self) -> int | None:
        """The number of the signal that asked to stop, if one did; whoever sees it saves and raises Interrupted."""
        return self.signals.received
