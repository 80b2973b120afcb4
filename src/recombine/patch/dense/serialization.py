"""Patch files of segmentation networks and detectors: a patch of the encoder, and the heads trained with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from recombine.core.errors import ConfigError
from recombine.models.dense import encoder_of, head_state, is_dense, set_encoder, share_encoder
from recombine.models.detection import Detector
from recombine.models.freeze import digest
from recombine.models.graph import traced
from recombine.models.model import Model, Preprocess, unwrap
from recombine.models.serialization import DAMAGE, Artifact, write_artifact
from recombine.patch.patched import HeadOnly, TaskNetwork
from recombine.patch.serialization import FORMAT, class_of, dtype_of, kind_of

__all__ = ["put_on_dense", "save_dense"]

EXAMPLES = {"segmentation": "lraspp_mobilenetv2_tv", "detection": "faster_rcnn_resnet18"}


def save_dense(model: Model, path: str | Path, *, name: str, class_names: list[str], **info: Any) -> Path:
    """Write what was trained beside the frozen encoder of `model`: its patch, if it has one, and its heads.

    The card has the digest of the encoder, which alone must be the same again.
    """
    net = model.net
    assert is_dense(net), "it was trained as one"
    encoder: Any = encoder_of(net)
    patched = isinstance(encoder, TaskNetwork)
    base, patch = (encoder.base, encoder.patch) if patched else (encoder, None)
    head = "detection" if isinstance(net, Detector) else "segmentation"
    card: dict[str, Any] = {"name": name, "head": head, "base": digest(base), "network": type(base).__name__}
    card |= {"kind": kind_of(patch) if patch is not None else "head_only"}
    card |= {"options": patch.options if patch is not None else {}, "preprocess": model.preprocess.settings()}
    card |= {"classes": model.classes, "class_names": class_names, "dtype": dtype_of(base), **info}
    tensors = head_state(net)
    if patch is not None:
        tensors |= {f"patch.{key}": value for key, value in patch.state_dict().items()}
    return write_artifact(path, "patch", card, tensors, version=FORMAT)


def put_on_dense(base: nn.Module, found: Artifact, path: str | Path) -> Model:
    """A network of the file's classes on the encoder of `base`, which is shared and must not change; in eval mode.

    `base`: a `Model` of a network for the file's task, whatever its classes. ConfigError if its encoder is not, bit
    for bit, that of the file.
    """
    model, card = unwrap(base), found.card
    task = card["head"]
    net = model.net if isinstance(model, Model) else model
    fits = is_dense(net) and isinstance(net, Detector) == (task == "detection")
    if not isinstance(model, Model) or not is_dense(net) or not fits:
        raise ConfigError(f"{path} is for the backbone of a network for {task}, such as model {EXAMPLES[task]}")
    encoder = encoder_of(net)
    if (given := digest(encoder)) != card["base"]:
        raise ConfigError(
            f"{path} was made for a backbone {card['network']} with weights {card['base'][:12]}, but this "
            f"{type(encoder).__name__} has weights {given[:12]}; load the backbone the patch was trained on"
        )
    whole = share_encoder(net, card["classes"])
    cls = class_of(card["kind"])
    patch = {k.removeprefix("patch."): value for k, value in found.tensors.items() if k.startswith("patch.")}
    heads = {key: value for key, value in found.tensors.items() if not key.startswith("patch.")}
    try:
        preprocess = Preprocess(**card["preprocess"])
        if heads.keys() != head_state(whole).keys():
            raise ValueError(f"it has other heads than {model.name}")
        whole.load_state_dict(heads, strict=False)
        if cls is not HeadOnly:
            new = cls(traced(encoder, preprocess.size), 0, **card["options"])
            new.load_state_dict(patch)
            set_encoder(whole, TaskNetwork(encoder, new))
    except DAMAGE as error:
        raise ConfigError(f"{path} is damaged or of another version: {error}") from error
    about = {"name": model.name, "architecture": model.architecture, "class_names": card["class_names"]}
    named = Model(whole, preprocess, classes=card["classes"], options=model.options, tag=card["name"], **about)
    return named.to(next(net.parameters()).device).eval()
