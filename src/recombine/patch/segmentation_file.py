"""Patch files of segmentation networks: a patch of the backbone with the classifier that was trained with it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from torch import nn

from recombine.core.errors import ConfigError
from recombine.models.freeze import digest
from recombine.models.graph import traced
from recombine.models.model import Model, Preprocess, unwrap
from recombine.models.segmentation import Segmenter
from recombine.models.serialization import DAMAGE, Artifact, write_artifact
from recombine.patch.patched import HeadOnly, TaskNetwork
from recombine.patch.serialization import FORMAT, SEGMENTATION, class_of, dtype_of, kind_of

__all__ = ["put_on_segmenter", "save_segmentation"]


def save_segmentation(model: Model, path: str | Path, *, name: str, class_names: list[str], **info: Any) -> Path:
    """Write what was trained beside the frozen backbone of `model`: its patch, if it has one, and its classifier.

    The card has the digest of the backbone, which alone must be the same again.
    """
    net: Any = model.net
    patched = isinstance(net.backbone, TaskNetwork)
    base = net.backbone.base if patched else net.backbone
    patch = net.backbone.patch if patched else None
    card: dict[str, Any] = {"name": name, "head": SEGMENTATION, "base": digest(base), "network": type(base).__name__}
    card |= {"kind": kind_of(patch) if patch is not None else "head_only"}
    card |= {"options": patch.options if patch is not None else {}, "preprocess": model.preprocess.settings()}
    card |= {"classes": model.classes, "class_names": class_names, "dtype": dtype_of(base), **info}
    tensors = {f"classifier.{key}": value for key, value in net.classifier.state_dict().items()}
    if patch is not None:
        tensors |= {f"patch.{key}": value for key, value in patch.state_dict().items()}
    return write_artifact(path, "patch", card, tensors, version=FORMAT)


def put_on_segmenter(base: nn.Module, found: Artifact, path: str | Path) -> Model:
    """A network of the file's classes on the backbone of `base`, which is shared and must not change; in eval mode.

    `base`: a `Model` of a segmentation network, whatever its classes. ConfigError if its backbone is not, bit for bit,
    that of the file.
    """
    model, card = unwrap(base), found.card
    if not isinstance(model, Model) or not isinstance(model.net, Segmenter):
        raise ConfigError(f"{path} is for the backbone of a segmentation network, such as model lraspp_mobilenetv2_tv")
    net = model.net
    if (given := digest(net.backbone)) != card["base"]:
        raise ConfigError(
            f"{path} was made for a backbone {card['network']} with weights {card['base'][:12]}, but this "
            f"{type(net.backbone).__name__} has weights {given[:12]}; load the backbone the patch was trained on"
        )
    whole = Segmenter(net.backbone, copy.deepcopy(net.classifier), card["classes"])
    whole.reset_classifier(card["classes"])
    cls = class_of(card["kind"])
    try:
        preprocess = Preprocess(**card["preprocess"])
        if cls is not HeadOnly:
            patch = cls(traced(net.backbone, preprocess.size), 0, **card["options"])
            patch.load_state_dict(_part(found, "patch."))
            whole.backbone = TaskNetwork(net.backbone, patch)
        whole.classifier.load_state_dict(_part(found, "classifier."))
    except DAMAGE as error:
        raise ConfigError(f"{path} is damaged or of another version: {error}") from error
    about = {"name": model.name, "architecture": model.architecture, "class_names": card["class_names"]}
    named = Model(whole, preprocess, classes=card["classes"], options=model.options, tag=card["name"], **about)
    return named.to(next(net.parameters()).device).eval()


def _part(found: Artifact, prefix: str) -> dict[str, Any]:
    return {key.removeprefix(prefix): value for key, value in found.tensors.items() if key.startswith(prefix)}
