"""Settings of what cloning is compared with. No torch here."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from recombine.data.augment_settings import problems_of
from recombine.engine.settings import OptimizerNode, ScheduleNode
from recombine.pnc.method_settings import NotNegative, PncMethodSettings, Positive, Steps

__all__ = ["DirectEnsembleSettings", "EwcSettings", "FineTuningSettings", "FromScratchSettings", "TrainedSettings"]


class DirectEnsembleSettings(PncMethodSettings):
    """argmax over the target's logits and the source's of the cloned classes; nothing is trained."""

    name: str = "direct_ensemble"
    """How rows call it."""
    softmax: bool = False
    """Take the softmax over each network's own outputs first."""


class TrainedSettings(PncMethodSettings):
    """A network that is trained for each of its learning rates; images kept for selection decide."""

    epochs: NotNegative = 20
    """Epochs over the images in use."""
    min_steps: Steps = 600
    """Updates at least: as many as both stages of a clone together."""
    optimizer: OptimizerNode
    """Its own, as such networks are tuned; a clone takes the run's."""
    lr_factors: Annotated[list[Positive], Field(min_length=1, examples=[[1.0, 0.1]])] = Field([1.0, 0.1])
    """Factors of the optimizer's lr to try; the best mean of old and new accuracy on images kept for selection wins."""


class FineTuningSettings(TrainedSettings):
    """The target with new outputs: all of it trained, with `keep_weight` Learning without Forgetting, or a probe."""

    name: str = "lwf"
    """How rows call it."""
    features: Literal["target", "source", "both"] | None = None
    """null: all of the target is trained. target, source, both: new outputs alone, on features that stay as they are,
    a linear probe."""
    keep_weight: NotNegative = 1.0
    """Weight of T^2 KL to the target on its own outputs; 0 is plain fine-tuning."""
    source_weight: NotNegative = 0.0
    """Weight of T^2 KL to the source on the cloned classes."""
    temperature: Positive = 2.0
    """T of the distillation."""


class EwcSettings(TrainedSettings):
    """Elastic weight consolidation: the target with new outputs, each weight held by its Fisher information.

    The Fisher information is of the target's own images in use, also with use_target_data=false: EWC brings it along
    from the training of the target, and none of these images trains.
    """

    name: str = "ewc"
    """How rows call it."""
    strengths: Annotated[list[NotNegative], Field(min_length=1)] = Field([100, 1000, 10000])
    """Lambdas to try, each with each learning rate."""


class FromScratchSettings(TrainedSettings):
    """A new network of the target's architecture, trained on old and new classes together.

    It sees images of the target's own classes whatever use_target_data says: without them there is nothing to join.
    """

    name: str = "joint_full"
    """How rows call it."""
    whole: bool = True
    """Train on all images; false: on those that clones train on."""
    min_steps: Steps = 0
    """Updates at least."""
    augment: str = "none"
    """A preset's name, as in dataset.augment: how the networks themselves were trained."""
    schedule: ScheduleNode
    """The learning rate over the training."""

    def check(self, path: str) -> list[str]:
        """An augmentation that does not exist."""
        return problems_of(self.augment, f"{path}.augment")
