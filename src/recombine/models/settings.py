"""Settings of networks."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field

from recombine.core.settings import Settings

__all__ = ["ModelSettings"]

Positive = Annotated[float, Field(gt=0)]
Channels = float | Annotated[list[float], Field(min_length=3, max_length=3)]


class ModelSettings(Settings):
    """A network: which one, its weights, and how it prepares images. Other keys are options of the architecture."""

    model_config = ConfigDict(extra="allow")

    name: Annotated[str, Field(min_length=1)]
    """How rows call it; a name in config/model, timm:<name>, torchvision:<name>, a checkpoint file, or one's name."""
    architecture: str | None = None
    """A built-in network, timm:<name> or torchvision:<name>; null: as `name` says."""
    weights: str | None = "pretrained"
    """pretrained, a checkpoint file, or null for random ones."""
    classes: Annotated[int, Field(ge=1)] | None = None
    """Outputs of the stored weights."""
    size: Annotated[int, Field(ge=1)] | None = None
    """Pixels of the input; null: as the library or the file says. So for the four below."""
    crop_pct: Positive | None = None
    """Share of the resized image that the centre crop keeps."""
    mean: Channels | None = None
    """Of the channels, in 0..1."""
    std: Channels | None = None
    """Of the channels, in 0..1."""
    interpolation: str | None = None
    """How images are resized."""
    claimed_accuracy: float | None = None
    """What its authors published, in percent."""
