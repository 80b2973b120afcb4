"""Text that both pages need."""

from __future__ import annotations

__all__ = ["GENERATED", "escape", "sentence"]

GENERATED = "<!-- Written by `python scripts/docs.py`. Do not edit: change the settings classes or parsers. -->\n"


def sentence(text: str) -> str:
    """With a capital letter and a full stop."""
    return f"{text[0].upper()}{text[1:]}."


def escape(text: str) -> str:
    """Text for a Markdown table: what is not code must not be read as Markdown or HTML."""
    parts = text.split("`")
    for place in range(0, len(parts), 2):
        parts[place] = parts[place].replace("<", "&lt;").replace("*", "\\*").replace("|", "\\|")
    return "`".join(parts)
