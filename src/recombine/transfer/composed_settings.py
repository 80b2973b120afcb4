"""Settings of composed distillation: masks, losses, and the method that joins them."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from recombine.core.builds import Builds, Node
from recombine.core.settings import Settings
from recombine.transfer.method_settings import TrainedMethodSettings

__all__ = ["ComposedSettings"]

Count = Annotated[int, Field(ge=1)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class PartSettings(Settings):
    """A part of a composed method."""

    name: str
    """Its part of the method's name in rows."""


class MaskSettings(PartSettings):
    """Whom each sample is learned from."""


class ConfidenceSettings(MaskSettings, target="recombine.transfer.masks.Confidence"):
    """From whoever is most confident."""

    by: Literal["label", "maximum", "entropy"] = "label"
    """Confident of the label, of any class, or by low entropy; the last two read no labels."""
    softness: NotNegative = 0.0
    """0: one network teaches a sample. Above: all do, with weights softmax(log(confidence) / softness)."""
    calibrated: bool = False
    """Compare confidences at each network's own temperature, fitted to validation images."""


class FlipMaskSettings(MaskSettings, target="recombine.transfer.masks.FlipMask"):
    """By who of teacher and student in training is right."""

    rule: Literal["teacher_on_positive", "initial_on_negative", "positive_only", "not_negative"] = "teacher_on_positive"
    """The last two leave the other samples out; with the first two the initial student teaches them."""


class AllSettings(MaskSettings, target="recombine.transfer.masks.All"):
    """Every sample from one side."""

    side: Literal["teachers", "initial"] = "teachers"
    """Who teaches."""


class LossSettings(PartSettings):
    """How a sample is learned from its target."""

    temperature: Positive = 1.0
    """Divides logits; the loss is multiplied by its square."""


class KLSettings(LossSettings, target="recombine.transfer.losses.KL"):
    """KL divergence."""

    topk: Count | None = Field(None, examples=[100])
    """Only the target's k largest logits enter; null: all."""
    standardized: bool = False
    """Standardise logits over the classes first."""


class DKDSettings(LossSettings, target="recombine.transfer.losses.DKD"):
    """Decoupled knowledge distillation."""

    alpha: NotNegative = 1.0
    """Weight of the label against all other classes."""
    beta: NotNegative = 8.0
    """Weight of the other classes among themselves."""


class DISTSettings(LossSettings, target="recombine.transfer.losses.DIST"):
    """Pearson correlations."""

    beta: NotNegative = 1.0
    """Weight of the correlations within samples."""
    gamma: NotNegative = 1.0
    """Weight of the correlations within classes, over the batch."""


MASK = Builds("a mask", "mask=dp", MaskSettings, base="recombine.transfer.masks.Mask")
LOSS = Builds("a distillation loss", "loss=kl", LossSettings)


class ComposedSettings(TrainedMethodSettings, target="recombine.transfer.composed.ComposedDistillation"):
    """Any mask with any loss."""

    many_teachers: ClassVar[bool] = True

    mask: Annotated[Node, MASK]
    """Whom each sample is learned from."""
    loss: Annotated[Node, LOSS]
    """How it is learned."""
    kd_weight: Fraction = 1.0
    """Weight of the loss; the rest is cross entropy."""

    @property
    def learns_from_teachers(self) -> bool:
        """Unless the initial student teaches all."""
        return self.mask.get("side") != "initial"
