"""What patches may be called. No torch here."""

from __future__ import annotations

import re

__all__ = ["RESERVED", "name_problem"]

RESERVED = ("base", "auto", "patched", "base_before", "base_after")
"""Names that mean something else where a patch is chosen, or where its accuracy stands in a row."""


def name_problem(name: str) -> str | None:
    """Why a patch cannot be called `name`, if so."""
    if name in RESERVED:
        return f"{name!r} means something else"
    if not re.fullmatch(r"\w[\w+=-]*", name, re.ASCII):
        return f"{name!r} is no possible name: letters, digits, _ and - are"
    return None
