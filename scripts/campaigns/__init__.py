"""What chaos.py tries: whole runs that are killed or lose their disk, wrong settings, damaged files."""

from typing import NamedTuple

__all__ = ["GOOD", "Case"]

GOOD = {"same", "told", "seen", "refused"}
"""What may become of a case; everything else is a fault."""


class Case(NamedTuple):
    """One thing that was tried."""

    place: str
    what: str
    verdict: str
