"""The built-in networks by name, with the options that each takes. Imports no torch: options are checked without it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from recombine.core.builds import Builds
from recombine.core.errors import did_you_mean
from recombine.core.settings import Settings, find_problems
from recombine.models.libraries import name_problems
from recombine.models.registry import SETTINGS, is_library

__all__ = ["BUILT_IN", "ArchitectureSettings", "option_problems"]

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]


class ArchitectureSettings(Settings):
    """Options of a built-in network, beside its number of classes."""


class CifarResNetSettings(ArchitectureSettings, target="recombine.models.cifar_resnet.CifarResNet"):
    """ResNet for 32-pixel images (He et al. 2016, section 4.2)."""

    depth: Count = 20
    """6n + 2 layers: 8, 14, 20, 32, 44, 56, 110, ..."""
    width: Count = 16
    """Channels of the first stage."""
    shortcut: Literal["A", "B"] = "A"
    """Where the shape changes: A, zero channels; B, a 1x1 convolution."""
    head: Literal["linear", "fc"] = "linear"
    """Name of the classifier in checkpoints."""

    def check(self, path: str) -> list[str]:
        """The depth is 6n + 2."""
        good = self.depth >= 8 and (self.depth - 2) % 6 == 0
        return [] if good else [f"{path}.depth={self.depth} is not 6n + 2; such as {path}.depth=20"]


class ResNetSettings(ArchitectureSettings, target="recombine.models.small.resnet_cifar"):
    """torchvision's ResNet for 32 to 64 pixels."""

    depth: Literal[18, 34, 50] = 18
    """Layers."""


class MobileNetV2Settings(ArchitectureSettings, target="recombine.models.small.mobilenetv2_cifar"):
    """torchvision's MobileNetV2 for 32 to 64 pixels."""

    width_mult: Positive = 1.0
    """Factor of all channels."""


class ShuffleNetV2Settings(ArchitectureSettings, target="recombine.models.small.shufflenetv2_cifar"):
    """torchvision's ShuffleNetV2 for 32 to 64 pixels."""

    width: Literal["x0_5", "x1_0", "x1_5", "x2_0"] = "x1_0"
    """Factor of all channels."""


class VGGSettings(ArchitectureSettings, target="recombine.models.small.vgg_cifar"):
    """torchvision's VGG with BatchNorm and one linear layer."""

    depth: Literal[11, 13, 16, 19] = 16
    """Layers of the published network."""


class CNNSettings(ArchitectureSettings, target="recombine.models.small.cnn"):
    """3x3 convolutions with max pooling between."""

    widths: Annotated[list[Count], Field(min_length=1)] = [32, 64, 128, 128]
    """Channels of each convolution."""


class LeNet5Settings(ArchitectureSettings, target="recombine.models.small.lenet5"):
    """LeNet-5."""


class MLPerfResNet8Settings(ArchitectureSettings, target="recombine.models.tiny.MLPerfResNet8"):
    """ResNet-8 of MLPerf Tiny."""


class MicroNetSettings(ArchitectureSettings, target="recombine.models.tiny.MicroNet"):
    """The CIFAR-100 network of a 2019 MicroNet-challenge entry."""

    widths: Annotated[list[Count], Field(min_length=1)] = [
        *(16, 16, 32, 32, 48, 48, 48, 72, 72, 72, 72, 72, 80, 88, 88, 106)
    ]
    """Output channels of each block."""
    expansion: Positive = 3.0
    """Channels inside a block over those of its input."""
    stem: Count = 32
    """Channels of the first convolution."""
    stride_two: list[Annotated[int, Field(ge=0)]] = [2, 7, 12]
    """Positions (from 0) of the blocks that halve the map."""


class EfficientNetSettings(ArchitectureSettings, target="recombine.models.zoo.efficientnet"):
    """timm's EfficientNet from block definitions."""

    arch_def: Annotated[list[list[str]], Field(min_length=1, examples=[[["ds_r1_k3_s1_c16"]]])]
    """Blocks of each stage in timm's notation."""
    stem_size: Count = 32
    """Channels of the first convolution."""
    num_features: Annotated[int, Field(ge=0)] = 1280
    """Channels of the last 1x1 convolution; 0 leaves it out."""
    channel_multiplier: Positive = 1.0
    """Factor of all channels."""
    act: str = "relu"
    """Activation, by timm's name."""
    negative_slope: Annotated[float, Field(ge=0)] | None = None
    """Slope of a leaky activation."""
    bn_eps: Positive = 1e-5
    """Epsilon of BatchNorm."""
    pad_type: str = ""
    """same: pad as TensorFlow does."""


class LRASPPSettings(ArchitectureSettings, target="recombine.models.segmentation.lraspp"):
    """LR-ASPP on a timm backbone: a class for every pixel."""

    backbone: str = "mobilenetv2_100"
    """timm's name; its weights are `backbone_weights`."""
    inter_channels: Count = 128
    """Channels of the head."""
    pad_type: Literal["", "same"] = ""
    """same: pad as TensorFlow does, for a backbone with such weights."""


class FasterRCNNSettings(ArchitectureSettings, target="recombine.models.detection.faster_rcnn"):
    """Faster R-CNN with a feature pyramid on a timm backbone: boxes of objects."""

    backbone: str = "resnet18"
    """timm's name; its weights are `backbone_weights`."""
    channels: Count = 256
    """Channels of the pyramid."""
    hidden: Count = 1024
    """Channels of the box head."""
    rois: Count = 512
    """Regions of an image on which the box head trains."""
    anchor: Count = 8
    """Side of the anchors of a map over its stride."""


BUILT_IN: dict[str, type[ArchitectureSettings]] = {
    "cifar_resnet": CifarResNetSettings,
    "resnet_cifar": ResNetSettings,
    "mobilenetv2_cifar": MobileNetV2Settings,
    "shufflenetv2_cifar": ShuffleNetV2Settings,
    "vgg_cifar": VGGSettings,
    "cnn": CNNSettings,
    "lenet5": LeNet5Settings,
    "mlperf_resnet8": MLPerfResNet8Settings,
    "micronet": MicroNetSettings,
    "efficientnet": EfficientNetSettings,
    "lraspp": LRASPPSettings,
    "faster_rcnn": FasterRCNNSettings,
}
"""Architecture -> its options; their `target` is the constructor, which takes `classes` too."""


READING = ("checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")
"""Arguments of timm's that would make it read files of its own."""
OWN = Builds("a network", "model=cnn", ArchitectureSettings, base="torch.nn.Module", late=("classes",))
"""A class of somebody's own, by its dotted name: `Class(classes, **options)` takes normalised images [B, 3, H, W]."""


def option_problems(architecture: str, options: Mapping[str, Any]) -> list[str]:
    """What is wrong with an architecture and its options, without building it; a library checks its names."""
    if is_library(architecture):
        files = [f"model.{key} is no setting: model.weights=<file> names weights" for key in READING if key in options]
        return files + name_problems(architecture)
    if "." in architecture:
        return OWN.problems({"_target_": architecture, **options}, "model")
    if architecture not in BUILT_IN:
        return [
            f"unknown architecture {architecture!r}; {did_you_mean(architecture, BUILT_IN)} "
            f"allowed: {', '.join(BUILT_IN)}, timm:<name>, torchvision:<name>, package.module.Class of your own"
        ]
    known = BUILT_IN[architecture].model_fields
    unknown = [_unknown_option(architecture, key, list(known)) for key in options if key not in known]
    given = {key: value for key, value in options.items() if key in known}
    return unknown + find_problems(BUILT_IN[architecture], given, "model")


def _unknown_option(architecture: str, key: str, known: list[str]) -> str:
    suggestion = did_you_mean(key, [*known, *SETTINGS], show=0)
    options = f"{architecture} takes {', '.join(known) or 'no options'}"
    return f"unknown setting model.{key}: {architecture} has no option '{key}'; {suggestion or options}"
