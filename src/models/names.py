"""The names under config/model, and suggestions for misspelt ones."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path

__all__ = ["CONFIGS", "config_names", "did_you_mean"]

CONFIGS = Path(__file__).resolve().parents[2] / "config" / "model"


def config_names() -> list[str]:
    """The names under config/model that stand for one network."""
    return sorted(path.stem for path in CONFIGS.glob("*.yaml") if path.stem != "any")


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """` (did you mean a, b?)` for close names, else nothing."""
    close = difflib.get_close_matches(name, list(names), n=3, cutoff=0.6)
    return f" (did you mean {', '.join(close)}?)" if close else ""
