"""Settings of Delta-Patching."""

from __future__ import annotations

from pydantic import ConfigDict

from recombine.data.checks import check as check_data
from recombine.data.settings import DatasetSettings, LoaderSettings
from recombine.engine.settings import TrainingSettings

__all__ = ["PatchSettings"]


class PatchSettings(TrainingSettings):
    """Delta-Patching."""

    model_config = ConfigDict(extra="allow")

    dataset: DatasetSettings
    """The images."""
    protocol: str = "single"
    """single, joint, sequential or scratch."""
    loader: LoaderSettings = LoaderSettings()
    """The loader."""

    def check(self, path: str) -> list[str]:
        """Absent files, and a split that is not there."""
        return [] if self.protocol == "scratch" else check_data(self.dataset, self.data_root)
