"""The names under config/model, and how to train a network of a name that pretraining gives."""

from __future__ import annotations

import re
from pathlib import Path

from recombine.core.files import config_files

__all__ = ["PRETRAINED", "SETTINGS", "config_file", "config_names", "is_library", "training_hint"]

PRETRAINED = re.compile(r"(?P<model>.+)-(?P<dataset>[a-z0-9_]+)-s(?P<seed>\d+)")
"""A name that main_pretrain.py gives."""
SETTINGS = (
    *("name", "architecture", "weights", "backbone_weights", "use_ema", "classes"),
    *("size", "crop_pct", "mean", "std", "interpolation"),
)
"""Keys of a model node that every architecture has."""


def config_names() -> list[str]:
    """The names under config/model that stand for one network."""
    return [name for name in config_files("model") if name != "any"]


def config_file(name: str) -> Path:
    """The file of a name under config/model."""
    return config_files("model")[name]


def is_library(architecture: str) -> bool:
    """Whether the architecture comes from timm or torchvision (and may have weights of its own there)."""
    return architecture.startswith(("timm:", "torchvision:", "hf-hub:", "hf_hub:"))


def training_hint(name: str, weights_root: str) -> str:
    """The end of a message about an absent network: how to train it, if main_pretrain.py gives such names."""
    kept = PRETRAINED.fullmatch(name)
    if not kept or kept["dataset"] not in config_files("dataset"):
        return ""
    where = "" if weights_root == "weights" else f" weights_root={weights_root}"
    command = "python main_pretrain.py model={model} dataset={dataset} seed={seed}".format(**kept.groupdict())
    return f"; to train it: {command}{where}"
