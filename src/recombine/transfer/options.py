"""Checks of a method's settings for its constructor: what was given, what is allowed, an override that mends it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from recombine.core.errors import ConfigError

__all__ = ["flag", "number", "one_of"]


def one_of(option: str, value: Any, allowed: Sequence[str]) -> None:
    """Raise ConfigError unless `value` is allowed for this option of the method."""
    if value not in allowed:
        raise ConfigError(
            f"method.{option}={value}: one of {', '.join(allowed)} is needed, such as method.{option}={allowed[0]}"
        )


def flag(option: str, value: Any) -> None:
    """Raise ConfigError unless `value` is true or false."""
    if not isinstance(value, bool):
        raise ConfigError(f"method.{option}={value}: true or false is needed, such as method.{option}=true")


def number(
    option: str,
    value: Any,
    example: float,
    *,
    least: float = -math.inf,
    above: float = -math.inf,
    most: float = math.inf,
    below: float = math.inf,
    whole: bool = False,
) -> None:
    """Raise ConfigError unless `value` is a finite number (`whole`: an integer) within the bounds."""
    kind = int if whole else (int, float)
    known = isinstance(value, kind) and not isinstance(value, bool) and math.isfinite(value)
    if known and least <= value <= most and above < value < below:
        return
    words = {"at least": least, "more than": above, "at most": most, "less than": below}
    bounds = " and ".join(f"{word} {bound}" for word, bound in words.items() if math.isfinite(bound))
    what = f"a {'whole ' if whole else ''}number of {bounds}"
    raise ConfigError(f"method.{option}={value}: {what} is needed, such as method.{option}={example}")
