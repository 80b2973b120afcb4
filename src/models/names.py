"""The names under config/model, and suggestions for misspelt ones."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from pathlib import Path

__all__ = ["CONFIGS", "PRETRAINED", "SETTINGS", "config_names", "did_you_mean", "training_hint"]

CONFIGS = Path(__file__).resolve().parents[2] / "config" / "model"
PRETRAINED = re.compile(r"(?P<model>.+)-(?P<dataset>[a-z0-9_]+)-s(?P<seed>\d+)")
"""A name that main_pretrain.py gives."""
SETTINGS = ("name", "architecture", "weights", "classes", "size", "crop_pct", "mean", "std", "interpolation")
"""Keys of a model node that every architecture has."""


def config_names() -> list[str]:
    """The names under config/model that stand for one network."""
    return sorted(path.stem for path in CONFIGS.glob("*.yaml") if path.stem != "any")


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """` (did you mean a, b?)` for close names, else nothing."""
    close = difflib.get_close_matches(name, list(names), n=3, cutoff=0.6)
    return f" (did you mean {', '.join(close)}?)" if close else ""


def training_hint(name: str, weights_root: str) -> str:
    """The end of a message about an absent network: how to train it, if main_pretrain.py gives such names."""
    kept = PRETRAINED.fullmatch(name)
    if not kept or not (CONFIGS.parent / "dataset" / f"{kept['dataset']}.yaml").is_file():
        return ""
    where = "" if weights_root == "weights" else f" weights_root={weights_root}"
    command = "python main_pretrain.py model={model} dataset={dataset} seed={seed}".format(**kept.groupdict())
    return f"; to train it: {command}{where}"
