"""Settings of the operations of `dataset.augment`, and its named lists; what they do is in augment.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from recombine.core.builds import Builds, Node
from recombine.core.errors import ConfigError, did_you_mean
from recombine.core.settings import Settings

__all__ = ["PRESETS", "nodes_of", "problems_of"]

MODULE = "recombine.data.augment"
Probability = Annotated[float, Field(ge=0, le=1)]
Range = Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=2, max_length=2)]


class OperationSettings(Settings):
    """An operation on whole training batches."""


class HorizontalFlipSettings(OperationSettings, target=f"{MODULE}.HorizontalFlip"):
    """Mirror left and right."""

    p: Probability = 0.5
    """Probability."""


class PadCropSettings(OperationSettings, target=f"{MODULE}.PadCrop"):
    """Pad every side, then cut a window of the old size anywhere."""

    padding: Annotated[int, Field(ge=0)] = 4
    """Pixels on each side."""
    mode: Literal["zero", "reflect"] = "zero"
    """What is outside of the image."""


class ColorDistortionSettings(OperationSettings, target=f"{MODULE}.ColorDistortion"):
    """Change brightness, contrast, saturation, then hue."""

    strength: Annotated[float, Field(ge=0)] = 1.0
    """How much."""
    p: Probability = 0.8
    """Probability."""


class GrayscaleSettings(OperationSettings, target=f"{MODULE}.Grayscale"):
    """Replace the colours by their luminance."""

    p: Probability = 0.2
    """Probability."""


class RotationSettings(OperationSettings, target=f"{MODULE}.Rotation"):
    """Rotate about the centre."""

    degrees: Annotated[float, Field(ge=0)] = 15.0
    """Largest angle to either side."""


class RandomResizedCropSettings(OperationSettings, target=f"{MODULE}.RandomResizedCrop"):
    """Cut a random part while decoding and resize it; must come first."""

    scale: Range = [0.08, 1.0]
    """Least and most of the area."""
    ratio: Range = [3 / 4, 4 / 3]
    """Least and most width over height."""
    flip: Probability = 0.0
    """Probability of mirroring the part."""

    def check(self, path: str) -> list[str]:
        """Ranges go from low to high; no part is larger than the image."""
        good = self.scale[0] <= self.scale[1] <= 1 and self.ratio[0] <= self.ratio[1]
        return [] if good else [f"{path}: RandomResizedCrop needs 0 < low <= high in scale (<= 1) and ratio"]


class RandomScaleCropSettings(OperationSettings, target=f"{MODULE}.RandomScaleCrop"):
    """Enlarge or shrink, cut a square or pad to one; must come first. For images with masks."""

    scale: Range = [0.5, 2.0]
    """Least and most enlargement."""
    flip: Probability = 0.5
    """Probability of mirroring the part."""

    def check(self, path: str) -> list[str]:
        """A range goes from low to high."""
        return [] if self.scale[0] <= self.scale[1] else [f"{path}: RandomScaleCrop needs 0 < low <= high in scale"]


OPERATION = Builds(
    "an augmentation",
    "{_target_: recombine.data.augment.Rotation, degrees: 15}",
    OperationSettings,
    base=f"{MODULE}.Operation",
)


def _node(name: str, **options: Any) -> Node:
    return {"_target_": f"{MODULE}.{name}", **options}


PRESETS: dict[str, list[Node]] = {
    "none": [],
    "flip": [_node("HorizontalFlip")],
    "crop": [_node("PadCrop")],
    "flip_crop": [_node("PadCrop"), _node("HorizontalFlip")],
    "crop_resize": [_node("RandomResizedCrop", flip=0.5)],
    "scale_crop": [_node("RandomScaleCrop")],
    "paper_transfer": [_node("HorizontalFlip"), _node("ColorDistortion"), _node("Grayscale")],
    "paper_pretrain": [_node("RandomResizedCrop", flip=0.5), _node("Rotation")],
}
"""Named lists for `dataset.augment`: flip_crop is usual for CIFAR, crop_resize for ImageNet, scale_crop for masks;
paper_* are of Fantastic Gains for transfer (on a centre crop) and for pretraining on the smaller sets."""


def nodes_of(augment: str | Sequence[Node] | None) -> list[Node]:
    """The operation nodes of a preset's name or of a list of them; ConfigError for an unknown name."""
    if not isinstance(augment, str):
        return [dict(node) for node in augment or ()]
    if augment not in PRESETS:
        suggestion = did_you_mean(augment, PRESETS)
        raise ConfigError(f"dataset.augment={augment}: {suggestion} Or a list of nodes such as {OPERATION.example}")
    return PRESETS[augment]


def problems_of(augment: str | Sequence[Node] | None, path: str) -> list[str]:
    """Everything wrong with `augment` at `path`."""
    try:
        nodes = nodes_of(augment)
    except ConfigError as error:
        return [text.replace("dataset.augment", path, 1) for text in error.problems]
    found = [text for place, node in enumerate(nodes) for text in OPERATION.problems(node, f"{path}.{place}")]
    crops = ("RandomResizedCrop", "RandomScaleCrop")
    late = [name for node in nodes[1:] if (name := str(node.get("_target_")).rpartition(".")[2]) in crops]
    found += [f"{path}: {name} has to be the first operation" for name in late]
    return found
