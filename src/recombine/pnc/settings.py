"""Settings of Partial Network Cloning. No torch here: a wrong command is answered before it is imported."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import Field

from recombine.core.builds import Builds, Node
from recombine.core.errors import ConfigError
from recombine.core.settings import Settings, schema_of
from recombine.data.augment_settings import problems_of
from recombine.data.checks import check as check_data
from recombine.data.settings import DatasetSettings, LoaderSettings
from recombine.engine.settings import OptimizerNode, ScheduleNode, TrainingSettings
from recombine.models.checks import check_model
from recombine.models.settings import ModelSettings
from recombine.pnc.method_settings import CloningSettings, PncMethodSettings
from recombine.pnc.sources import check_sources

__all__ = ["LimeSettings", "PncSettings", "ScratchSettings", "SimilaritySettings"]

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]


MOST_SEGMENTS = 16
"""On a side, as in a grid: their numbers are bytes."""


class LimeSettings(Settings):
    """The neighbourhood of an image in which the source's behaviour is kept: patches blanked, as LIME does.

    None of these numbers is stated by what could be read of the paper: sigma and alpha are LIME's, the others ours.
    """

    segment: Literal["grid", "quickshift"] = "grid"
    """What is blanked together: the patches of a grid, or segments of like colour, as LIME and Zest take."""
    grid: Annotated[int, Field(ge=2)] = 4
    """Patches on each side of the image, Np = grid^2: 4 up to 32 pixels, 8 at 64. Most segments, Np too."""
    num_fit: Count = 64
    """Blanked images to which the linear model of each image is fitted; at least 2 (Np + 1)."""
    num_train: Count = 2
    """Blanked images of each image in a training step, drawn anew."""
    fill: Literal["mean", "patch_mean", "zero_pixel"] = "mean"
    """What stands in place of a blanked patch: the mean colour of the network's images; the patch's own, as in LIME;
    black."""
    kernel: Literal["lime", "uniform"] = "lime"
    """How blanked images are weighted: by LIME's kernel, or all alike."""
    sigma: Positive = 0.25
    """Width of LIME's kernel."""
    alpha: Positive = 1.0
    """Ridge penalty on squared coefficients, the intercept left out."""
    output: Literal["logit", "prob"] = "logit"
    """What is modelled; prob: softmax over all classes."""
    refit: bool = False
    """Fit the linear models in every step, which allows augmented images, instead of once."""

    @property
    def patches(self) -> int:
        """Np."""
        return self.grid**2

    def check(self, path: str) -> list[str]:
        """Too few blanked images for a linear model, and more segments than a byte can number."""
        least = 2 * (self.patches + 1)
        found = []
        if self.segment == "quickshift" and self.grid > MOST_SEGMENTS:
            found = [
                f"{path}.grid={self.grid}: {path}.segment=quickshift takes {MOST_SEGMENTS} at most, "
                f"which is {MOST_SEGMENTS**2} segments; try {path}.grid=8"
            ]
        if self.num_fit < least:
            found.append(
                f"{path}.num_fit={self.num_fit}: at least {least} are needed, twice the coefficients of a linear model "
                f"of {self.patches} patches; try {path}.num_fit={least}"
            )
        return found


class SimilaritySettings(Settings):
    """How module and source are compared, by the measure of Zest (128 images and 1000 vectors there)."""

    images: Count = 16
    """Images around which they are compared."""
    vectors: Count = 64
    """Blanked copies of each image; at least 2 (Np + 1)."""
    by_class: bool = False
    """Also around each class of the source by itself."""

    def check_grid(self, lime: LimeSettings, path: str) -> list[str]:
        """Too few blanked copies for the patches of `lime`."""
        least = 2 * (lime.patches + 1)
        if self.vectors >= least:
            return []
        return [
            f"{path}.vectors={self.vectors}: lime.grid={lime.grid} needs at least {least}; try {path}.vectors={least}"
        ]


class ScratchSettings(Settings):
    """How networks are trained from scratch (method=joint_full), as target and source were."""

    epochs: NotNegative = 20
    """Epochs over all images."""
    augment: str = "none"
    """A preset's name, as in dataset.augment."""
    optimizer: OptimizerNode
    """The optimizer."""
    schedule: ScheduleNode
    """The learning rate over the training."""

    def check(self, path: str) -> list[str]:
        """An augmentation that does not exist."""
        return problems_of(self.augment, f"{path}.augment")


class PncSettings(TrainingSettings):
    """Partial Network Cloning."""

    target: ModelSettings
    """The network that gains classes; it stays as it is."""
    source: ModelSettings
    """The network that is cloned from."""
    dataset: DatasetSettings
    """The target's data: the classes it knows."""
    source_data: DatasetSettings
    """The source's data."""
    loader: LoaderSettings = LoaderSettings()
    """The loader."""
    method: Annotated[Node, Builds("a method of cloning", "method=pnc", PncMethodSettings)]
    """How the classes are added."""
    clone: Annotated[list[int | str], Field(min_length=1, examples=[[0, 1]])]
    """Which of the source's classes, by number or name."""
    sources: list[Any] = Field(
        [], examples=[[{"name": "cnn-digits_low-s1000", "dataset": "digits_low", "clone": [0, 1]}]]
    )
    """Several sources in place of that one: each with name, dataset, clone, and further settings of the data."""
    calibrate_epochs: NotNegative = 2
    """Epochs in which clones of several sources learn a scale and a bias each; 0: none."""
    on_collision: Literal["error", "first"] = "error"
    """A class that the target or an earlier source has already; first: it is left out of the later one."""
    select_fraction: Annotated[float, Field(gt=0, lt=1, examples=[0.1])] = 0.1
    """Fraction of the images in use that is kept for selecting the position."""
    use_target_data: bool = True
    """Whether images of the target's own classes train the clone; without them the source's logits are matched."""
    lime: LimeSettings = LimeSettings()
    """The neighbourhood of an image in which the source's behaviour is kept."""
    similarity: SimilaritySettings | None = Field(SimilaritySettings(), examples=[{"images": 128, "vectors": 1000}])
    """How module and source are compared; null: not at all."""
    stage_epochs: NotNegative = 10
    """Epochs over the images in use, in each of the two stages of a clone."""
    tuning_epochs: NotNegative = 20
    """Epochs over the images in use where the target is tuned."""
    scratch: ScratchSettings
    """How networks are trained from scratch."""

    def read_method(self) -> PncMethodSettings:
        """The settings of the method; ConfigError with every problem of them."""
        declared = schema_of(str(self.method.get("_target_")))
        if declared is None or not issubclass(declared, PncMethodSettings):
            raise ConfigError(
                f"method._target_={self.method.get('_target_')} is not a method of cloning; try method=pnc"
            )
        return declared.of(self.method, "method")

    def check(self, path: str) -> Iterable[str]:
        """Absent files and weights, sources that are no sources, and a method that does not fit them."""
        problems = check_data(self.dataset, self.data_root) + self.dataset.check("dataset")
        problems += check_model(self.target, self.weights_root, frozen=True, path="target")
        problems += self.lime.check("lime") + self.scratch.check("scratch")
        if self.similarity is not None:
            problems += self.similarity.check_grid(self.lime, "similarity")
        try:
            method = self.read_method()
        except ConfigError:  # reported by the field itself
            return problems + self._check_sources(networks=True)
        return problems + self._check_sources(networks=method.needs_sources) + self._check_method(method)

    def _check_sources(self, networks: bool) -> list[str]:
        node = self.model_dump(exclude_unset=True)
        return check_sources(node, self.data_root, self.weights_root, networks=networks)

    def _check_method(self, method: PncMethodSettings) -> list[str]:
        problems = []
        if len(self.sources) > 1 and not method.several_sources:
            problems.append(f"method={method.name} takes one source; method=pnc clones from {len(self.sources)}")
        if not isinstance(method, CloningSettings):
            return problems
        if len(self.sources) > 1:
            problems += method.check_sources("method")
        if self.similarity is None and method.search.metric == "similarity":
            problems.append(
                "method.search.metric=similarity measures eq. (8) of the paper: give similarity too, such as "
                "similarity={images:128,vectors:1000}"
            )
        return problems
