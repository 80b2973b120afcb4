"""Settings of flips."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from recombine.core.builds import Builds, Node
from recombine.core.settings import Settings
from recombine.data.checks import check as check_data
from recombine.data.settings import DatasetSettings, LoaderSettings
from recombine.engine.settings import EngineSettings
from recombine.models.settings import ModelSettings
from recombine.run.settings import EntrySettings

__all__ = ["FlipsSettings"]


class TextEncoderSettings(Settings):
    """What embeds class names."""


class ClipSettings(TextEncoderSettings, target="recombine.flips.semantics.Clip"):
    """CLIP of open_clip."""

    architecture: str = "ViT-B-32-quickgelu"
    """Its name in open_clip."""
    weights: str = "openai"
    """A tag of open_clip, or the path of a file."""


class FlipsSettings(EntrySettings):
    """What one trained network knows that another does not."""

    dataset: DatasetSettings
    """The images."""
    loader: LoaderSettings = LoaderSettings()
    """The loader."""
    engine: EngineSettings = EngineSettings(precision="fp32")
    """The precision of evaluations."""
    models: Literal["all"] | list[str | ModelSettings] | str = Field("all", examples=[["resnet20", "resnet56"]])
    """Names, config nodes, patterns such as timm:resnet*, or `all`: every checkpoint in weights_root that fits."""
    exclude: list[str] = []
    """Patterns of names that patterns in `models` do not mean."""
    keep_logits: bool = False
    """Keep all logits too (float16: 2 bytes x images x classes a network), for the ensemble of mean probabilities."""
    fit_heads: bool = False
    """Fit a classifier to the training images on networks that were trained for other classes."""
    split: str = "test"
    """The images that are compared on."""
    pairs: Literal["all"] | Annotated[int, Field(ge=1)] = "all"
    """all: every ordered pair. A number: that many pairs drawn at random, for long lists."""
    random_baseline: bool = False
    """Also compare every model with randomly initialised copies, as student and as teacher."""
    legacy_class_count: bool = False
    """Count one class too many among those that hold the top-X % of the flips, as the authors' code does."""
    text_encoder: (
        Annotated[
            Node,
            Builds("a text encoder", "text_encoder=null", TextEncoderSettings, base="recombine.flips.semantics.Clip"),
        ]
        | None
    ) = None
    """Embeds class names, to see whether the classes of one expertise are alike in meaning; null: not computed."""

    def check(self, path: str) -> list[str]:
        """Absent files, a split that is not there, models that cannot be compared."""
        from recombine.flips.candidates import check_models

        given = self.model_dump(include={"models"}, exclude_unset=True).get("models", self.models)
        problems = check_data(self.dataset, self.data_root, self.split)
        return problems + check_models(given, self.weights_root, self.dataset.classes, self.exclude)

    def check_search(self) -> list[str]:
        """Nothing here is better or worse."""
        return ["flips measures networks and has no objective that a search could maximise; leave sweeper out"]
