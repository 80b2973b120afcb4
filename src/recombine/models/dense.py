"""What segmentation networks and detectors have in common: a classifier's encoder, and heads on its maps."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any, TypeGuard

from torch import Tensor, nn

from recombine.core.errors import ConfigError
from recombine.models.detection import Detector
from recombine.models.model import Model
from recombine.models.segmentation import Segmenter

__all__ = [
    *("DenseNet", "encoder_of", "head_parameters", "head_state", "is_dense", "labels_pixels", "load_encoder"),
    *("set_encoder", "share_encoder"),
]

DenseNet = Segmenter | Detector


def is_dense(net: nn.Module) -> TypeGuard[DenseNet]:
    """Whether a network has an encoder and heads on its maps."""
    return isinstance(net, Segmenter | Detector)


def labels_pixels(model: Model) -> bool:
    """Whether a model gives logits of every pixel: a segmentation network, or what was made of two of them."""
    return isinstance(model.net, Segmenter) or model.options.get("task") == "segmentation"


def encoder_of(net: DenseNet) -> nn.Module:
    """The part that gives maps."""
    return net.get_submodule(net.encoder)


def set_encoder(net: DenseNet, encoder: nn.Module) -> None:
    """Put another encoder into a network, in place."""
    parent, _, name = net.encoder.rpartition(".")
    setattr(net.get_submodule(parent), name, encoder)


def head_state(net: DenseNet) -> dict[str, Tensor]:
    """Weights of all that is not the encoder."""
    return {key: value for key, value in net.state_dict().items() if not key.startswith(f"{net.encoder}.")}


def head_parameters(net: DenseNet) -> Iterable[nn.Parameter]:
    """Parameters of all that is not the encoder."""
    return (value for key, value in net.named_parameters() if not key.startswith(f"{net.encoder}."))


def share_encoder(net: DenseNet, classes: int) -> DenseNet:
    """A network with new heads for `classes` on the same encoder, which is shared, not copied."""
    encoder = encoder_of(net)
    whole = copy.deepcopy(net, {id(encoder): encoder})
    whole.reset_classifier(classes)
    return whole


def load_encoder(net: nn.Module, source: nn.Module, name: str) -> None:
    """Copy the layers of a classifier, `source`, into the encoder of a network, in place.

    ConfigError unless it has all of them in the same shapes.
    """
    if not is_dense(net):
        raise ConfigError(f"model.backbone_weights={name}: {type(net).__name__} has no backbone with heads on its maps")
    state: dict[str, Any] = source.state_dict()
    encoder = encoder_of(net)
    wanted = encoder.state_dict()
    found = {key: state.get(key, state.get(f"features.{key}")) for key in wanted}
    absent = [key for key, value in found.items() if value is None or value.shape != wanted[key].shape]
    if absent:
        few = ", ".join(absent[:3]) + (", ..." if len(absent) > 3 else "")
        raise ConfigError(f"model.backbone_weights={name} has not the layers of the backbone: {len(absent)} ({few})")
    encoder.load_state_dict(found)
