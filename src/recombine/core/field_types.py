"""Types of fields that many settings have."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field

__all__ = ["FileName", "Seed"]

MOST_BYTES = 120
"""Of a name; file systems take 255, of which seed, fingerprint, ending and the mark of a temporary file need some."""


def _file_name(name: str) -> str:
    if not re.fullmatch(r"[^/\\\0]+", name) or name.startswith("."):
        raise ValueError("a name is needed that stays in its folder: no /, no \\ and no dot at its start")
    if len(name.encode(errors="surrogateescape")) > MOST_BYTES:
        raise ValueError(f"a name of at most {MOST_BYTES} bytes is needed")
    return name


def _seed(seed: int) -> int:
    if seed >= 2**63:
        raise ValueError("a whole number below 2**63 is needed")
    return seed


Seed = Annotated[int, Field(ge=0), AfterValidator(_seed)]
"""What torch's generators take."""
FileName = Annotated[str, Field(min_length=1), AfterValidator(_file_name)]
"""A name that becomes part of a path and cannot lead out of its folder."""
