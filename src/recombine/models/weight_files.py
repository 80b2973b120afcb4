"""Checkpoint files by name, and what a file written by `save` states about its model. Imports no torch."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from recombine.core.errors import ConfigError
from recombine.core.settings import find_problems
from recombine.models.libraries import hub_problem
from recombine.models.serialization import is_kind, read_card
from recombine.models.settings import DescriptionSettings

__all__ = ["SUFFIXES", "check_description", "description", "find", "list_checkpoints", "stem"]

SUFFIXES = (".safetensors", ".th", ".pt", ".pth", ".bin")
HASH = re.compile(r"-[0-9a-f]{8}$")


def stem(path: Path) -> str:
    """The model's name in a file name: no suffix, no torch-hub hash (`resnet20-12fca82f.th` -> `resnet20`)."""
    return HASH.sub("", path.name.removesuffix(path.suffix))


def find(name: str, root: Path) -> Path | None:
    """A checkpoint in `root`: `<name><suffix>`, else `<name>-<8 hex digits><suffix>`; ConfigError if several."""
    bare = name.rpartition(":")[2].rpartition("/")[2]
    exact = [root / f"{bare}{suffix}" for suffix in SUFFIXES if (root / f"{bare}{suffix}").is_file()]
    if exact:
        return exact[0]
    files = sorted(root.iterdir()) if root.is_dir() else []
    hashed = [f for f in files if f.suffix in SUFFIXES and stem(f) == bare]
    if len(hashed) > 1:
        raise ConfigError(
            f"{root} holds several checkpoints of {bare}: {', '.join(f.name for f in hashed)}; "
            f"choose with model.weights={hashed[0].name}"
        )
    return hashed[0] if hashed else None


def list_checkpoints(folder: Path) -> list[Path]:
    """The files in a folder whose names end as those of checkpoints do."""
    return sorted(path for path in folder.glob("*") if path.suffix in SUFFIXES and path.is_file())


def description(path: Path) -> dict[str, Any] | None:
    """What a file written by `save` states about its model; None for any other file."""
    if path.suffix != ".safetensors" or not is_kind(path, "student"):
        return None
    model = read_card(path, "student", {"model": dict})["model"]
    if "claimed_top1" in model:  # written before version 0.2
        model["claimed_accuracy"] = model.pop("claimed_top1")
    return check_description(model, path)


def check_description(model: dict[str, Any], path: str | Path) -> dict[str, Any]:
    """What a card says about a network; ConfigError if none can be built from that, or only by asking a network."""
    if wrong := find_problems(DescriptionSettings, model):
        raise ConfigError(f"{path} is damaged or of another version: its card says {'; '.join(wrong)}")
    if problem := hub_problem(model["architecture"]):
        raise ConfigError(f"{path}: {problem}")
    return model
