"""Settings of composed distillation: masks, losses, and the method that joins them."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from recombine.core.builds import Builds, Node
from recombine.core.settings import Settings
from recombine.transfer.method_settings import TrainedMethodSettings

__all__ = ["ComposedSettings", "wrong_temperatures"]

Count = Annotated[int, Field(ge=1)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Modules = Annotated[list[str], Field(min_length=1)]


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
    final_temperature: Positive | None = Field(None, examples=[1.0])
    """That of the last epoch, to which it moves by as much in each; null: it stays."""


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


class FeatureLossSettings(LossSettings):
    """KL divergence and a distance between features; the temperature is that of KL."""

    weight: NotNegative = 1.0
    """Weight of the distance between features."""
    kl_weight: NotNegative = 1.0
    """Weight of KL; 0: features alone, which do not train the classifier."""
    student_modules: Modules | None = Field(None, examples=[["layer3"]])
    """Paths of the modules whose outputs are compared; null: what enters the classifier."""
    teacher_modules: Modules | None = Field(None, examples=[["layer3"]])
    """Those of the teachers, one for each of the student's; null: the same paths."""

    def check(self, path: str) -> list[str]:
        """A path in the teacher for each in the student."""
        own, theirs = self.student_modules or [], self.teacher_modules
        if theirs is None or len(own) == len(theirs):
            return []
        given = f"{path}.teacher_modules has {len(theirs)} paths and {path}.student_modules {len(own)}"
        return [f"{given}: name one in the teacher for each in the student"]


class FitNetSettings(FeatureLossSettings, target="recombine.transfer.feature_losses.FitNet"):
    """Regression of features through adapters."""


class AttentionTransferSettings(FeatureLossSettings, target="recombine.transfer.feature_losses.AttentionTransfer"):
    """Attention maps."""


class SimilarityPreservingSettings(
    FeatureLossSettings, target="recombine.transfer.feature_losses.SimilarityPreserving"
):
    """Similarities within a batch."""


class CRDSettings(FeatureLossSettings, target="recombine.transfer.feature_losses.CRD"):
    """Contrast of features with a memory of all samples."""

    dimensions: Count = 128
    """Of the embeddings."""
    negatives: Count = 4096
    """Samples of other classes per sample."""
    nce_temperature: Positive = 0.07
    """Temperature of the contrast."""
    nce_momentum: Fraction = 0.5
    """Of the memory."""


MASK = Builds("a mask", "mask=dp", MaskSettings, base="recombine.transfer.masks.Mask")
LOSS = Builds("a distillation loss", "loss=kl", LossSettings, base="recombine.transfer.losses.DistillationLoss")


class ComposedSettings(TrainedMethodSettings, target="recombine.transfer.composed.ComposedDistillation"):
    """Any mask with any loss."""

    many_teachers: ClassVar[bool] = True

    mask: Annotated[Node, MASK]
    """Whom each sample is learned from."""
    loss: Annotated[Node, LOSS]
    """How it is learned."""
    kd_weight: Fraction = 1.0
    """Weight of the loss; the rest is cross entropy."""
    temperatures: Literal["calibrated"] | list[Positive] | None = Field(None, examples=[[1.0, 2.0]])
    """Divide the logits of the initial student and of each teacher before they are targets; null: by 1."""

    @property
    def learns_from_teachers(self) -> bool:
        """Unless the initial student teaches all."""
        return self.mask.get("side") != "initial"

    @property
    def calibrated(self) -> bool:
        """Temperatures of networks, for their targets or for the mask."""
        return self.temperatures == "calibrated" or bool(self.mask.get("calibrated"))

    def check_teachers(self, count: int) -> list[str]:
        """A temperature for each network."""
        given = self.temperatures
        if not isinstance(given, list) or len(given) == count + 1:
            return []
        return [wrong_temperatures(len(given), count + 1)]


def wrong_temperatures(given: int, networks: int) -> str:
    """The message for another number of temperatures than of frozen networks."""
    return (
        f"method.temperatures has {given} values and {networks} networks may teach; give one for the initial student "
        f"and one for each teacher, such as method.temperatures=[{', '.join(['1.0'] * networks)}]"
    )
