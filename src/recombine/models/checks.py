"""What would keep networks from being built, told before anything is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recombine.models.registry import training_hint
from recombine.models.settings import ModelSettings

__all__ = ["check_model"]


def check_model(
    model: ModelSettings | Mapping[str, Any] | str,
    weights_root: str | Path,
    *,
    classes: int | None = None,
    frozen: bool = False,
    path: str = "model",
) -> list[str]:
    """What is wrong with a network at `path` of a config, and how to train one that pretraining has not made yet."""
    from recombine.models.factory import check

    node = model.model_dump(exclude_unset=True) if isinstance(model, ModelSettings) else model
    name = node if isinstance(node, str) else str(node.get("name"))
    hint = training_hint(name, str(weights_root))
    found = check(node, weights_root=weights_root, classes=classes, frozen=frozen)
    return [text.replace("model.", f"{path}.") + hint for text in found]
