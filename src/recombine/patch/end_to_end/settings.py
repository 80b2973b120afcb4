"""Settings of what network and patch are trained with where both train: one class per constructor. No torch here."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from recombine.core.settings import Settings
from recombine.engine.settings import NotNegative

__all__ = [
    *("BSSSettings", "BiTuningSettings", "CoTuningSettings", "DeltaAttentionSettings", "LWFSettings"),
    *("RegularizerSettings", "StochNormSettings", "UniformPriorSettings"),
]

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]


class RegularizerSettings(Settings, target="recombine.patch.end_to_end.method.EndToEnd"):
    """Cross entropy alone."""

    reads_source: ClassVar[bool] = False
    """Whether it holds on to what the base knew, and so needs a trained one."""


class UniformPriorSettings(RegularizerSettings, target="recombine.patch.domain.adversary.UniformPrior"):
    """Uniform prior on the features, held up by a discriminator (Sinha et al. 2020)."""

    weight: NotNegative = 0.1
    """Factor of the encoder's term."""


class BSSSettings(RegularizerSettings, target="recombine.patch.end_to_end.regularizers.BSS"):
    """Batch spectral shrinkage: the smallest singular values of a batch's features (Chen et al. 2019)."""

    weight: NotNegative = 0.001
    """Factor of the sum of squares."""
    smallest: Count = 1
    """How many singular values."""


class LWFSettings(RegularizerSettings, target="recombine.patch.end_to_end.regularizers.LWF"):
    """Learning without forgetting: the base's classifier keeps its answers (Li and Hoiem 2016)."""

    reads_source: ClassVar[bool] = True
    weight: NotNegative = 4.0
    """Factor of the divergence."""
    temperature: Positive = 3.0
    """Divides the logits."""


class CoTuningSettings(RegularizerSettings, target="recombine.patch.end_to_end.regularizers.CoTuning"):
    """Co-Tuning: the base's classifier learns which of its classes go with each new one (You et al. 2020)."""

    reads_source: ClassVar[bool] = True
    weight: NotNegative = 2.3
    """Factor of its cross entropy."""


class DeltaAttentionSettings(RegularizerSettings, target="recombine.patch.end_to_end.delta_attention.DeltaAttention"):
    """DELTA: feature maps stay as they were, the more so the more the task needs them (Li et al. 2019)."""

    reads_source: ClassVar[bool] = True
    weight: NotNegative = 0.01
    """Factor of the distance of the feature maps."""
    head_weight: NotNegative = 0.01
    """Factor of half the squared norm of the classifier."""
    images: Count = 320
    """Training images that tell how much a channel is needed."""


class StochNormSettings(RegularizerSettings, target="recombine.patch.end_to_end.regularizers.StochNorm"):
    """Stochastic normalization: batch or running statistics, drawn for each channel (Kou et al. 2020)."""

    p: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Probability of the batch's statistics."""


class BiTuningSettings(RegularizerSettings, target="recombine.patch.end_to_end.bi_tuning.BiTuning"):
    """Bi-Tuning: contrast with the labels, of projections and of scores (Zhong et al. 2021)."""

    weight: NotNegative = 1.0
    """Factor of both contrasts."""
    temperature: Positive = 0.07
    """Divides the similarities."""
    queue: Count = 40
    """Keys that are kept for each class."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Of the moving average that makes the keys."""
    projection: Count = 128
    """Length of the projections."""
