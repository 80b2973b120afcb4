"""Settings of networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from recombine.core.settings import Settings

__all__ = ["DescriptionSettings", "ModelSettings", "Network", "PreprocessSettings", "name_of", "named_twice"]

Positive = Annotated[float, Field(gt=0)]
Side = Annotated[int, Field(ge=1, le=16384)]
Channels = float | Annotated[list[float], Field(min_length=3, max_length=3)]


class PreprocessSettings(Settings, target="recombine.models.model.Preprocess"):
    """How a network prepares images."""

    size: Side
    """Pixels of the input."""
    mean: Annotated[list[float], Field(min_length=3, max_length=3, examples=[[0.5, 0.5, 0.5]])]
    """Of the channels, in 0..1."""
    std: Annotated[list[Positive], Field(min_length=3, max_length=3, examples=[[0.25, 0.25, 0.25]])]
    """Of the channels, in 0..1."""
    crop_pct: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Fraction of the resized image that the centre crop keeps."""
    interpolation: Literal["nearest", "bilinear", "bicubic"] = "bilinear"
    """How images are resized."""


class DescriptionSettings(PreprocessSettings):
    """What a file says about the network in it."""

    name: Annotated[str, Field(min_length=1)]
    """How rows call it."""
    architecture: Annotated[str, Field(min_length=1)]
    """A built-in network, timm:<name>, torchvision:<name>, hf-hub:<repository> or somebody's class."""
    options: dict[str, Any]
    """Arguments of the architecture."""
    classes: Annotated[int, Field(ge=1, le=10_000_000)]
    """Outputs."""
    tag: str
    """Where its weights come from."""
    claimed_accuracy: float | None = None
    """As its authors measured it, in percent."""


class ModelSettings(Settings):
    """A network: which one, its weights, and how it prepares images. Other keys are options of the architecture."""

    model_config = ConfigDict(extra="allow")

    name: Annotated[str, Field(min_length=1)]
    """How rows call it; a name in config/model, timm:<name>, torchvision:<name>, a checkpoint file, or one's name."""
    architecture: str | None = None
    """A built-in network, timm:<name> or torchvision:<name>; null: as `name` says."""
    weights: str | None = "pretrained"
    """pretrained, a checkpoint file, or null for random ones."""
    backbone_weights: str | None = None
    """The classifier whose layers a segmentation network or detector with weights=null starts with, by any name."""
    use_ema: bool | None = None
    """Whether the average of weights in a checkpoint (EMA) is taken; null: where it has one."""
    classes: Annotated[int, Field(ge=1)] | None = None
    """Outputs of the stored weights; null: as the file or the library says."""
    size: Side | None = None
    """Pixels of the input; null: as the library or the file says. So for the four below."""
    crop_pct: Positive | None = None
    """Fraction of the resized image that the centre crop keeps."""
    mean: Channels | None = None
    """Of the channels, in 0..1."""
    std: Channels | None = None
    """Of the channels, in 0..1."""
    interpolation: str | None = None
    """How images are resized."""
    claimed_accuracy: float | None = None
    """What its authors published, in percent."""


Network = str | ModelSettings
"""A name or a config node."""


def name_of(node: Network) -> str:
    """The name of a network that is given by name or as a node."""
    return node if isinstance(node, str) else node.name


def named_twice(option: str, nodes: Sequence[Network]) -> list[str]:
    """Networks that a list holds more than once, one message each."""
    names = [name_of(node) for node in nodes]
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    return [f"{option}: {name} is named twice; name each network once" for name in twice]
