"""Settings of patches, one class per constructor. No torch here."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from recombine.core.builds import Builds
from recombine.core.settings import Settings

__all__ = [
    *("METHOD", "DeltaSettings", "HeadOnlySettings", "LoRASettings", "NormAdaptationSettings", "PatchMethodSettings"),
    *("ResidualAdaptersSettings", "ScaleShiftSettings"),
]

Count = Annotated[int, Field(ge=1)]


class PatchMethodSettings(Settings):
    """How a network learns a task."""


class DeltaSettings(PatchMethodSettings, target="recombine.patch.delta.Delta"):
    """Delta-networks: weighted skip connections between all sub-blocks of the last blocks (arXiv 2303.14772)."""

    modules: Literal["all"] | Count | Annotated[list[str], Field(min_length=1, examples=[["layer2", "layer4"]])] = "all"
    """Delta-modules, one for each patched block, counted from the last block; or the names of blocks."""
    budget: Count | None = Field(None, examples=[100000])
    """Instead of `modules`: as many as have at most so many parameters, the classifier left out."""
    weights: Literal["delta", "learned", "ones", "random", "random_fixed", "base"] = "delta"
    """delta: computed from the block's input. The others are ablations; base is the unpatched network."""
    skips: Literal["all", "new", "existing"] = "all"
    """existing: the network's skip connections alone; new: the others alone."""
    norm: Literal["last_post_act", "last_pre_act", "every_subblock", "skip_sum", "none"] = "last_post_act"
    """Where the extra BatchNorm of a block stands; in a dense block always at its end."""
    strides: Annotated[list[Count], Field(min_length=2, max_length=2)] = [2, 2]
    """Strides of the two convolutions of a Delta-module."""
    alpha_init: Literal["default", "base"] = "default"
    """base: start close to the unpatched network."""
    input_projection: Literal["reuse_frozen", "drop"] = "reuse_frozen"
    """drop: no skip connections from a block's input where its shape changes."""

    def check(self, path: str) -> list[str]:
        """A BatchNorm of the sum of skips needs the existing skips in that sum."""
        wrong = self.norm == "skip_sum" and self.skips == "new"
        return [f"{path}.norm=skip_sum needs the existing skips: {path}.skips=all"] if wrong else []


class HeadOnlySettings(PatchMethodSettings, target="recombine.patch.patched.HeadOnly"):
    """A new classifier on the frozen network."""


class ResidualAdaptersSettings(PatchMethodSettings, target="recombine.patch.adapters.ResidualAdapters"):
    """1x1 convolutions at every 3x3 convolution, and BatchNorms of the task (Rebuffi et al. 2017, 2018)."""

    position: Literal["parallel", "series"] = "parallel"
    """parallel: beside the convolution; series: after it."""


class NormAdaptationSettings(PatchMethodSettings, target="recombine.patch.adapters.NormAdaptation"):
    """BatchNorms of the task; LayerNorms and GroupNorms where the network has no BatchNorm."""

    mode: Literal["affine", "dua"] = "affine"
    """affine: scales, shifts and statistics, with labels. dua: statistics alone, without labels (Mirza et al. 2022)."""


class LoRASettings(PatchMethodSettings, target="recombine.patch.lora.LoRA"):
    """LoRA of convolutions and linear layers (Hu et al. 2022)."""

    rank: Count = 4
    """Channels between the two factors."""
    alpha: Annotated[float, Field(gt=0, examples=[8])] | None = None
    """The factor of what is added is alpha / rank; null: one."""


class ScaleShiftSettings(PatchMethodSettings, target="recombine.patch.lora.ScaleShift"):
    """SSF (Lian et al. 2022): a learned factor and shift for every channel that a layer gives."""


METHOD = Builds(
    "a patch method",
    "method=delta",
    PatchMethodSettings,
    base="recombine.patch.patched.Patch",
    late=("traced", "classes"),
)
"""What the field `method` must construct."""
