"""Settings of Transfer."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict

from recombine.core.builds import Builds, Node
from recombine.data.checks import check as check_data
from recombine.data.settings import DatasetSettings, LoaderSettings
from recombine.engine.settings import MethodSettings, TrainingSettings

__all__ = ["MultiTeacherSettings", "TransferSettings"]


class TransferMethodSettings(MethodSettings):
    """A method of transfer."""


TransferNode = Annotated[
    Node,
    Builds("a transfer method", "method=kl_dp", TransferMethodSettings, base="recombine.transfer.method.Transfer"),
]


class TransferSettings(TrainingSettings):
    """Transfer."""

    model_config = ConfigDict(extra="allow")

    method: TransferNode
    """What is learned from whom."""
    dataset: DatasetSettings
    """The images."""
    loader: LoaderSettings = LoaderSettings()
    """The loader."""
    split: str = "test"
    """The images that are reported on."""

    def check(self, path: str) -> list[str]:
        """Absent files, and a split that is not there."""
        return check_data(self.dataset, self.data_root, self.split)


class MultiTeacherSettings(TransferSettings):
    """Transfer from several teachers."""
