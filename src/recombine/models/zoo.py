"""Builds networks: the built-in ones, timm's and torchvision's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torchvision
from torch import nn

from recombine.core.builds import load_target
from recombine.core.errors import ConfigError
from recombine.models.architectures import BUILT_IN, option_problems
from recombine.models.detection import torchvision_detector
from recombine.models.libraries import no_weights, task_of, torchvision_weights, weights_problem
from recombine.models.registry import is_library
from recombine.models.segmentation import torchvision_segmenter

__all__ = ["Created", "create"]

# timm takes seconds to import, so each function that needs it imports it; a built-in network never does.


@dataclass
class Created:
    """A network as its library builds it."""

    net: nn.Module
    classes: int
    preprocessing: dict[str, Any] = field(default_factory=dict)
    """The library's own settings: size, crop_pct, mean, std, interpolation."""
    tag: str = "random"
    claimed_accuracy: float | None = None
    options: dict[str, Any] = field(default_factory=dict)
    """Those it was built with, beside its name and classes, where they are more than those given."""


def efficientnet(
    classes: int,
    arch_def: Sequence[Sequence[str]],
    stem_size: int = 32,
    num_features: int = 1280,
    channel_multiplier: float = 1.0,
    act: str = "relu",
    negative_slope: float | None = None,
    bn_eps: float = 1e-5,
    pad_type: str = "",
) -> nn.Module:
    """timm's EfficientNet from block definitions (`ds_r1_k3_s1_c16`, ...): MobileNets and what searches found.

    `num_features` 0 leaves the last 1x1 convolution out; `pad_type` same pads as TensorFlow; `act` is timm's name.
    """
    from timm.layers import get_act_layer
    from timm.models import EfficientNet
    from timm.models._efficientnet_builder import decode_arch_def, round_channels

    act_layer = get_act_layer(act)
    if negative_slope is not None:
        act_layer = partial(act_layer, negative_slope=negative_slope)
    return EfficientNet(
        decode_arch_def([list(stage) for stage in arch_def]),
        num_classes=classes,
        num_features=num_features,
        stem_size=stem_size,
        pad_type=pad_type,
        act_layer=act_layer,
        norm_layer=partial(nn.BatchNorm2d, eps=bn_eps),
        round_chs_fn=partial(round_channels, multiplier=channel_multiplier),
    )


def create(
    architecture: str,
    options: dict[str, Any],
    *,
    classes: int | None,
    pretrained: bool = False,
    size: int | None = None,
) -> Created:
    """Build a network, with the library's own weights if `pretrained`; `classes` None leaves the library's default.

    Raises ConfigError for unknown architectures and options, and for weights that cannot be downloaded.
    """
    if problems := option_problems(architecture, options):
        raise ConfigError(problems)
    if pretrained and (problem := weights_problem(architecture)):
        raise ConfigError(no_weights(architecture, problem))
    try:
        if not is_library(architecture):
            return _create_built_in(architecture, options, classes)
        if architecture.startswith("torchvision:"):
            return _create_torchvision(architecture.partition(":")[2], options, classes, pretrained)
        name = architecture.removeprefix("timm:")
        return _create_timm(name, options, classes, pretrained, size)
    except TypeError as error:
        raise ConfigError(f"{architecture} cannot be built with the options {options}: {error}") from error
    except OSError as error:
        raise ConfigError(no_weights(architecture, str(error).partition("\n")[0])) from error


def _create_built_in(architecture: str, options: dict[str, Any], classes: int | None) -> Created:
    if classes is None:
        raise ConfigError(f"{architecture} needs a number of classes: model.classes=<number>")
    own = architecture not in BUILT_IN  # somebody's class, which is a network: option_problems has looked at it
    constructor = load_target("model.architecture", architecture if own else BUILT_IN[architecture].constructs)
    return Created(constructor(classes, **options), classes)


def _create_timm(
    name: str, options: dict[str, Any], classes: int | None, pretrained: bool, size: int | None
) -> Created:
    import timm

    options = dict(options)
    config = timm.models.get_pretrained_cfg(name, allow_unregistered=True)
    if size is not None and config is not None and config.fixed_input_size:
        options.setdefault("img_size", size)  # transformers have position embeddings of one size
    outputs: dict[str, Any] = {} if classes is None else {"num_classes": classes}
    try:
        net: Any = timm.create_model(name, pretrained=pretrained, **options, **outputs)
    except RuntimeError as error:
        raise ConfigError(f"timm cannot build {name}: {error}") from error
    data = timm.data.resolve_model_data_config(net, args={"img_size": options.get("img_size")})
    keys = ("crop_pct", "mean", "std", "interpolation")
    preprocessing = {"size": data["input_size"][1], **{key: data[key] for key in keys}}
    tag = f"timm:{net.pretrained_cfg['architecture']}.{net.pretrained_cfg['tag']}" if pretrained else "random"
    return Created(net, net.num_classes, preprocessing, tag, options=options)


def _preset(preset: Any, net: Any, task: str | None) -> dict[str, Any]:
    """How torchvision prepares images; its detectors do it themselves, with a shorter side of this size."""
    if task == "detection":
        inside = net.transform
        return {"size": inside.min_size[0], "mean": list(inside.image_mean), "std": list(inside.image_std)}
    side = preset.resize_size[0] if task == "segmentation" else preset.crop_size[0]
    found = {"size": side, "crop_pct": side / preset.resize_size[0], "mean": preset.mean, "std": preset.std}
    return {**found, "interpolation": preset.interpolation.value}


def _create_torchvision(name: str, options: dict[str, Any], classes: int | None, pretrained: bool) -> Created:
    weights = torchvision_weights(name)
    architecture, options = name.partition(".")[0], dict(options)
    task = task_of(f"torchvision:{name}")
    if task != "classification":
        options |= {} if pretrained else {"weights_backbone": None}  # those are `backbone_weights`
    found = task == "detection"
    if architecture in ("googlenet", "inception_v3"):
        # Their second training output is no part of a classifier; without it forward returns logits in every mode.
        options |= {"aux_logits": pretrained, "init_weights": not pretrained}
    if classes is not None and not pretrained:
        options["num_classes"] = classes + found  # beside the background
    net = torchvision.models.get_model(architecture, weights=weights if pretrained else None, **options)
    if architecture in ("googlenet", "inception_v3"):
        net.aux_logits = False
    count = len(weights.meta["categories"]) - found if pretrained or not classes else classes
    preprocessing = _preset(weights.transforms(), net, task)
    if task == "segmentation":
        net = torchvision_segmenter(net, count)
    elif task == "detection":
        net = torchvision_detector(net, count)
    if not pretrained:
        return Created(net, count, preprocessing)
    claimed = weights.meta["_metrics"].get("ImageNet-1K", {}).get("acc@1")
    return Created(net, count, preprocessing, f"torchvision:{architecture}.{weights.name}", claimed)
