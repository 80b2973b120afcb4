"""Settings of pretraining."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from recombine.core.builds import Builds, Node
from recombine.core.errors import ConfigError
from recombine.core.field_types import FileName
from recombine.core.files import check_writable
from recombine.data.checks import TASKS, check_search_split, task_of
from recombine.data.checks import check as check_data
from recombine.data.settings import DatasetSettings, LoaderSettings
from recombine.engine.settings import MethodSettings, TrainingSettings
from recombine.models.checks import check_model
from recombine.models.settings import ModelSettings

__all__ = ["PretrainSettings"]


class PretrainSettings(TrainingSettings):
    """Train any network on any data set."""

    model: ModelSettings
    """The network."""
    dataset: DatasetSettings
    """The images."""
    loader: LoaderSettings = LoaderSettings()
    """The loader."""
    method: Annotated[
        Node,
        Builds(
            "a method of pretraining",
            "method=supervised",
            MethodSettings,
            base="recombine.engine.method.Method",
            late=("net",),
        ),
    ]
    """The loss."""
    split: str = "test"
    """The images that are reported on."""
    save_as: FileName | None = None
    """The file is weights_root/<this>.safetensors; null: <model>-<dataset>-s<seed>."""
    freeze: bool = False
    """Train only the classifier (linear probe)."""
    lr_scaling: Literal["none", "linear", "linear_twice"] = "none"
    """linear: the learning rate times batch_size / 256. linear_twice: as the authors' code, which does it twice."""

    def check(self, path: str) -> list[str]:
        """Absent files and weights, and a classifier trained on random features."""
        problems = check_data(self.dataset, self.data_root, self.split, tasks=TASKS)
        problems += check_model(self.model, self.weights_root, task=task_of(self.dataset))
        try:
            check_writable(Path(self.weights_root))
        except ConfigError as error:
            problems += error.problems
        if self.freeze and self.model.weights is None and self.model.backbone_weights is None:
            problems.append(
                "freeze=true trains only the classifier of a network with random weights; give trained ones with "
                "model.weights=pretrained or model.weights=<file>, or train all of it with freeze=false"
            )
        return problems

    def check_search(self) -> list[str]:
        """A split that a search must not choose by."""
        return check_search_split(self.split)
