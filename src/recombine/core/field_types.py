"""Types of fields that many settings have."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field

__all__ = ["FileName"]


def _file_name(name: str) -> str:
    if not re.fullmatch(r"[^/\\\0]+", name) or name.startswith("."):
        raise ValueError("a name is needed that stays in its folder: no /, no \\ and no dot at its start")
    return name


FileName = Annotated[str, Field(min_length=1), AfterValidator(_file_name)]
"""A name that becomes part of a path and cannot lead out of its folder."""
