"""Every network that can be built: the built-in ones, timm and torchvision. The only module that imports timm."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn

from recombine.core.errors import ConfigError, did_you_mean
from recombine.models import small
from recombine.models.cifar_resnet import CifarResNet
from recombine.models.registry import SETTINGS
from recombine.models.tiny import MicroNet, MLPerfResNet8

__all__ = [
    "BUILT_IN",
    "Created",
    "create",
    "is_library",
    "library_name",
    "library_names",
    "no_weights",
    "option_problems",
    "own_classes",
    "weights_problem",
]

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
    """Those it was built with, beside its name and classes, where they are more than what was asked for."""


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


BUILT_IN: dict[str, Callable[..., nn.Module]] = {
    "cifar_resnet": CifarResNet,
    "resnet_cifar": small.resnet_cifar,
    "mobilenetv2_cifar": small.mobilenetv2_cifar,
    "shufflenetv2_cifar": small.shufflenetv2_cifar,
    "vgg_cifar": small.vgg_cifar,
    "cnn": small.cnn,
    "lenet5": small.lenet5,
    "mlperf_resnet8": MLPerfResNet8,
    "micronet": MicroNet,
    "efficientnet": efficientnet,
}


def is_library(architecture: str) -> bool:
    """Whether the architecture comes from timm or torchvision (and may have weights of its own there)."""
    return architecture.startswith(("timm:", "torchvision:", "hf-hub:", "hf_hub:"))


def library_name(name: str) -> str | None:
    """The name with its library's prefix: as given, else timm's, else torchvision's; None if neither knows it."""
    if is_library(name):
        return name
    import timm

    if timm.is_model(name):
        return f"timm:{name}"
    return f"torchvision:{name}" if name.partition(".")[0] in torchvision_names() else None


def torchvision_names() -> list[str]:
    """torchvision's classifiers."""
    return torchvision.models.list_models(module=torchvision.models)


def library_names() -> list[str]:
    """All names of both libraries, for suggestions."""
    import timm

    return [*timm.list_models(), *torchvision_names()]


def option_problems(architecture: str, options: dict[str, Any]) -> list[str]:
    """What is wrong with an architecture and its options, without building it; timm is only imported for timm names."""
    if not is_library(architecture):
        return _built_in_problems(architecture, options)
    library, _, name = architecture.partition(":")
    if library == "torchvision":
        if name.partition(".")[0] not in torchvision_names():
            return [f"torchvision has no classifier {name!r}; {did_you_mean(name, torchvision_names())}"]
    elif library == "timm":
        import timm

        if not timm.is_model(name):
            return [f"timm has no model {name!r}; {did_you_mean(name, timm.list_models())}"]
        if "." in name and name not in timm.list_pretrained():
            tags = ", ".join(timm.list_pretrained(f"{name.partition('.')[0]}.*"))
            return [f"timm has no weights {name!r}; it has {tags}"]
    return []


def _built_in_problems(architecture: str, options: dict[str, Any]) -> list[str]:
    if architecture not in BUILT_IN:
        return [
            f"unknown architecture {architecture!r}; {did_you_mean(architecture, BUILT_IN)} "
            f"allowed: {', '.join(BUILT_IN)}, timm:<name>, torchvision:<name>"
        ]
    parameters = dict(inspect.signature(BUILT_IN[architecture]).parameters)
    del parameters["classes"]
    allowed = ", ".join(parameters) or "none"
    problems = [
        f"{architecture} has no option {key!r}; {did_you_mean(key, [*parameters, *SETTINGS], show=0)} it has: {allowed}"
        for key in options
        if key not in parameters
    ]
    required = [key for key, value in parameters.items() if value.default is inspect.Parameter.empty]
    return problems + [f"{architecture} needs the option model.{key}" for key in required if key not in options]


def own_classes(architecture: str) -> int | None:
    """Outputs of a library's own weights, as far as its registry says; None for built-in networks."""
    library, _, name = architecture.partition(":")
    if library == "torchvision":
        return len(_torchvision_weights(name).meta["categories"])
    if library == "timm":
        from timm.models import get_pretrained_cfg

        config = get_pretrained_cfg(name)
        return config.num_classes if config else None
    return None


def weights_problem(architecture: str) -> str | None:
    """Why a library's own weights cannot be had: there are none, or they are not cached and HF_HUB_OFFLINE is set."""
    library, _, name = architecture.partition(":")
    offline = os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "ON", "YES", "TRUE")
    if library == "torchvision":
        file = Path(torch.hub.get_dir()) / "checkpoints" / _torchvision_weights(name).url.rpartition("/")[2]
        return f"HF_HUB_OFFLINE is set and {file} is not there" if offline and not file.is_file() else None
    repository = name
    if library == "timm":
        from timm.models import get_pretrained_cfg

        config = get_pretrained_cfg(name)
        if config is None or not config.has_weights:
            return "timm has none"
        repository = config.hf_hub_id
    if not offline or not repository:
        return None
    from huggingface_hub import try_to_load_from_cache

    names = ("model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors", "open_clip_pytorch_model.bin")
    cached = any(isinstance(try_to_load_from_cache(repository, file), str) for file in names)
    return None if cached else f"HF_HUB_OFFLINE is set and {repository} is not in the Hugging Face cache"


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


def no_weights(architecture: str, reason: str) -> str:
    """The message for a library's weights that cannot be had, with what mends it."""
    file = architecture.rpartition(":")[2].rpartition("/")[2]
    return (
        f"no weights of {architecture}: {reason}; fetch them on a machine with a network, or put the file into "
        f"weights_root as {file}.safetensors (or .pth), or start from random ones with model.weights=null"
    )


def _create_built_in(architecture: str, options: dict[str, Any], classes: int | None) -> Created:
    if classes is None:
        raise ConfigError(f"{architecture} needs a number of classes: model.classes=<number>")
    return Created(BUILT_IN[architecture](classes, **options), classes)


def _create_timm(
    name: str, options: dict[str, Any], classes: int | None, pretrained: bool, size: int | None
) -> Created:
    import timm

    options = dict(options)
    config = timm.models.get_pretrained_cfg(name, allow_unregistered=True)
    if size is not None and config is not None and config.fixed_input_size:
        options.setdefault("img_size", size)  # transformers have position embeddings of one size
    outputs = {} if classes is None else {"num_classes": classes}
    try:
        net = timm.create_model(name, pretrained=pretrained, **options, **outputs)
    except RuntimeError as error:
        raise ConfigError(f"timm cannot build {name}: {error}") from error
    data = timm.data.resolve_model_data_config(net, args={"img_size": options.get("img_size")})
    keys = ("crop_pct", "mean", "std", "interpolation")
    preprocessing = {"size": data["input_size"][1], **{key: data[key] for key in keys}}
    tag = f"timm:{net.pretrained_cfg['architecture']}.{net.pretrained_cfg['tag']}" if pretrained else "random"
    return Created(net, net.num_classes, preprocessing, tag, options=options)


def _torchvision_weights(name: str) -> Any:
    """The weights entry of `<name>` (its newest) or `<name>.<entry>`; ConfigError for an unknown entry."""
    name, _, entry = name.partition(".")
    entries = torchvision.models.get_model_weights(name)
    if entry and entry not in entries.__members__:
        raise ConfigError(f"torchvision's {name} has no weights {entry!r}; it has {', '.join(entries.__members__)}")
    return entries[entry] if entry else entries.DEFAULT


def _create_torchvision(name: str, options: dict[str, Any], classes: int | None, pretrained: bool) -> Created:
    weights = _torchvision_weights(name)
    architecture, options = name.partition(".")[0], dict(options)
    if architecture in ("googlenet", "inception_v3"):
        # Their second training output is no part of a classifier; without it forward returns logits in every mode.
        options |= {"aux_logits": pretrained, "init_weights": not pretrained}
    if classes is not None and not pretrained:
        options["num_classes"] = classes
    net = torchvision.models.get_model(architecture, weights=weights if pretrained else None, **options)
    if architecture in ("googlenet", "inception_v3"):
        net.aux_logits = False
    preset = weights.transforms()
    preprocessing = {
        "size": preset.crop_size[0],
        "crop_pct": preset.crop_size[0] / preset.resize_size[0],
        "mean": preset.mean,
        "std": preset.std,
        "interpolation": preset.interpolation.value,
    }
    count = len(weights.meta["categories"]) if pretrained else classes or 1000
    if not pretrained:
        return Created(net, count, preprocessing)
    claimed = weights.meta["_metrics"].get("ImageNet-1K", {}).get("acc@1")
    return Created(net, count, preprocessing, f"torchvision:{architecture}.{weights.name}", claimed)
