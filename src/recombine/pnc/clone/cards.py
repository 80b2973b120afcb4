"""The cards in clone files. No torch here: files are checked before it is imported."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recombine.core.errors import ConfigError
from recombine.models.serialization import read_card

__all__ = ["check_cards", "read_cards"]

CARD: dict[str, Any] = {
    "name": str,
    "target": str,
    "source": dict,
    "source_digest": str,
    "class_names": list,
    "outputs": list,
}
CARD |= {"position": int, "source_position": int, "reference": bool, "adapter": str, "head": str}
CARD |= {"recalibrated": bool, "target_size": int | None}
"""Keys that every card has, and their types; others are there to be read."""


def read_cards(path: str | Path) -> dict[str, dict[str, Any]]:
    """The cards of a file's clones by name, in the order of their outputs; ConfigError if it is no clone file."""
    return {card["name"]: card for card in check_cards(path, read_card(path, "clone", {"cards": list}))}


def check_cards(path: str | Path, content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The cards in the card of a file; ConfigError if a key is missing or of another type."""
    cards = content["cards"]
    wrong = {
        key
        for card in cards
        for key, kind in CARD.items()
        if not isinstance(card, dict) or key not in card or not isinstance(card[key], kind)
    }
    if wrong:
        raise ConfigError(f"{path} is damaged or of another version: its cards do not say {', '.join(sorted(wrong))}")
    return cards
