"""Settings of what network and patch are trained with where both train: one class per constructor. No torch here."""

from __future__ import annotations

from typing import ClassVar

from recombine.core.settings import Settings
from recombine.engine.settings import NotNegative

__all__ = ["RegularizerSettings", "UniformPriorSettings"]


class RegularizerSettings(Settings, target="recombine.patch.end_to_end.EndToEnd"):
    """Cross entropy alone."""

    reads_source: ClassVar[bool] = False
    """Whether it holds on to what the base knew, and so needs a trained one."""


class UniformPriorSettings(RegularizerSettings, target="recombine.patch.adversary.UniformPrior"):
    """Uniform prior on the features, held up by a discriminator (Sinha et al. 2020)."""

    weight: NotNegative = 0.1
    """Factor of the encoder's term."""
