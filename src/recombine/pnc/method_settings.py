"""Settings of every way to clone. No torch here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from recombine.core.errors import ConfigError, did_you_mean
from recombine.core.settings import Settings
from recombine.models import weight_files
from recombine.pnc.clone.cards import read_cards

__all__ = [
    *("COMPARED", "CloningSettings", "ComposeSettings", "FromFileSettings", "PncMethodSettings"),
    "PositionSearchSettings",
]

COMPARED = (
    *("mask", "mask_kind", "scope", "surrogate", "use_complement", "keep_ratio", "bn_recalibrate", "adapter", "align"),
    *("joint", "last_stage", "mask_start", "residual", "source_weights", "granularity", "mask_input"),
)
"""Settings of a clone that rows hold, as tables compare them; none in rows of methods without such a setting."""

Count = Annotated[int, Field(ge=1)]
Steps = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]


class PositionSearchSettings(Settings):
    """How one position is selected; the paper's order and stopping rule are not known to us."""

    train: Count | None = 2
    """How many candidates are trained: the best in closed form (whole source, least-squares adapter). null: all."""
    metric: Literal["average", "similarity"] = "average"
    """average: mean of old and new accuracy. similarity: eq. (8) of the paper, which needs no label."""


class PncMethodSettings(Settings):
    """A way to add classes to a network."""

    several_sources: ClassVar[bool] = False
    """Whether it takes more than one source."""
    name: str
    """How rows call it."""

    @property
    def needs_sources(self) -> bool:
        """Whether the sources' networks are needed."""
        return True


class CloningSettings(PncMethodSettings):
    """Partial network cloning: localize, insert at every position, select one."""

    several_sources: ClassVar[bool] = True
    name: str = "pnc"
    """How rows call it."""
    keep_ratio: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Fraction of the filters (or weights) of each maskable layer that stays."""
    anneal: bool = True
    """Lower the budget along a cubic over 70 % of the first stage."""
    mask: Literal["learned", "ones", "random", "magnitude", "taylor", "relevance"] = "learned"
    """ones: the whole source. magnitude: filters of the largest L1 norm. taylor: those without which the cloned outputs
    would change most, to first order. relevance: those that speak most for each image's own class. All but learned
    skip the first stage."""
    mask_start: Literal["ones", "taylor", "relevance"] = "ones"
    """Where learned masks start: all filters alike, or in the order of taylor or relevance."""
    granularity: Literal["filter", "weight"] = "filter"
    """What a mask switches off: filters as a whole, or single weights of them, which stay in place as zeros."""
    mask_input: bool = False
    """Channels at which the source is entered can go too, with outputs of the adapter, where plain layers alone
    read them."""
    residual: Literal["none", "stage"] = "none"
    """stage: filters of residual streams can go too, one mask for all layers that write to the stream of a stage."""
    mask_kind: Literal["topk_ste", "sigmoid", "gumbel"] = "topk_ste"
    """topk_ste: the best filters are on, gradients pass. sigmoid: filters fade. gumbel: filters are drawn."""
    scope: Literal["layer", "global"] = "layer"
    """Whether the budget holds for each layer, or for all filters of a module together."""
    per_position: bool = True
    """Localize each position by itself; false: the largest module only, whose scores all positions take."""
    use_complement: bool = False
    """The first stage also keeps the module as silent about the source's other classes as the source is, eq. (3)."""
    bn_recalibrate: bool = False
    """Give the module BatchNorm statistics of its own after the first stage."""
    surrogate: Literal["lime", "direct"] = "lime"
    """lime: local linear models of the source. direct: the source itself."""
    joint: bool = True
    """Refine the masks in the second stage."""
    loc_weight: NotNegative = 0.1
    """Weight of the localization loss in the second stage; 0: the masks are refined by the loss of insertion alone."""
    keep_weight: NotNegative = 1.0
    """Weight of T^2 KL to the target on its own images; only head=full, which can change its logits, needs it."""
    temperature: Positive = 2.0
    """T of the distillation."""
    adapter: Literal["conv1x1_bn", "conv1x1", "conv3x3_bn", "bottleneck", "none"] = "conv1x1_bn"
    """From the target's features to the source's."""
    adapter_init: Literal["identity", "lstsq"] = "identity"
    """identity: near it where both have as many channels. lstsq: the best linear map between both features."""
    insert_loss: Literal["xe", "match", "both"] | None = None
    """xe: cross entropy. match: the source's logits. null: xe, and match where use_target_data=false, as cross entropy
    alone would then give every image to the new classes."""
    match_weight: NotNegative = 1.0
    """Weight of the source's logits where they are matched."""
    head: Literal["rows", "scale", "full", "concat"] | None = None
    """rows: new ones that see both branches. scale: a factor and a bias each. full: all rows anew. concat: the source's
    logits. null: rows, and concat where use_target_data=false."""
    positions: Annotated[list[Steps], Field(min_length=1)] | Literal["last"] | None = Field(None, examples=[[3, 4]])
    """Candidates R, such as [3,4]. last: the last with filters of the source above it. null: all but 0."""
    align: Literal["scale", "all", "whole"] = "scale"
    """Where the source is entered. scale: where it is scaled down as much as the target. all: at every cut of one kind.
    whole: as a whole, on the features."""
    search: PositionSearchSettings = PositionSearchSettings()
    """How a position is selected."""
    localize_epochs: NotNegative = 10
    """Epochs of the first stage."""
    insert_epochs: NotNegative = 10
    """Epochs of the second stage."""
    final_epochs: NotNegative = 0
    """Epochs of a third stage: adapter and head of the selected position go on, the masks fixed."""
    min_steps: Steps = 300
    """Updates of each stage at least, however few images there are."""
    score_lr: NotNegative = 0.02
    """Learning rate of the masks' scores."""
    last_stage: Literal["localize", "insert"] = "insert"
    """localize: evaluate the module of every position by itself, and make no clone."""
    source_weights: Literal["trained", "random"] = "trained"
    """random: the source is drawn anew, the control of what its training is worth."""

    @property
    def refines(self) -> bool:
        """Whether the second stage learns the masks too."""
        return self.joint and self.mask == "learned"

    def select_head(self, use_target_data: bool) -> str:
        """The kind of head: the one given, else what suits the data."""
        return self.head or ("rows" if use_target_data else "concat")

    def check(self, path: str) -> list[str]:
        """Settings that would have no effect beside the others."""
        unused = {"mask_kind": "topk_ste", "mask_start": "ones", "per_position": True, "use_complement": False}
        found = [
            f"{path}.{key}={str(getattr(self, key)).lower()} needs {path}.mask=learned, but it is {self.mask}"
            for key, default in unused.items()
            if self.mask != "learned" and getattr(self, key) != default
        ]
        if self.adapter_init == "lstsq" and self.adapter == "none":
            found.append(
                f"{path}.adapter_init=lstsq: there is nothing to start with {path}.adapter=none; give "
                f"{path}.adapter_init=identity"
            )
        return found + self._check_units(path)

    def _check_units(self, path: str) -> list[str]:
        """What masks cannot switch off together."""
        found = []
        if self.granularity == "weight":
            others = {"residual": "none", "mask_input": False}
            found += [
                f"{path}.{key}={str(getattr(self, key)).lower()}: single weights go in all layers, and none loses a "
                f"channel; leave it out, or give {path}.granularity=filter"
                for key, default in others.items()
                if getattr(self, key) != default
            ]
        if self.mask_input and self.adapter == "none":
            found.append(f"{path}.mask_input=true takes outputs of the adapter away; give {path}.adapter=conv1x1_bn")
        if self.mask_input and not self.per_position:
            found.append(
                f"{path}.mask_input=true: what enters the module differs from position to position; "
                f"give {path}.per_position=true"
            )
        return found

    def check_sources(self, path: str) -> list[str]:
        """What cannot be combined with several sources."""
        found = {"head": self.head == "full", "last_stage": self.last_stage == "localize"}
        return [f"{path}.{key}={getattr(self, key)} takes one source" for key, wrong in found.items() if wrong]


class ComposeSettings(CloningSettings):
    """The wanted classes, each from the network of a folder that gives it best, as one cloned network."""

    name: str = "compose"
    """How rows call it."""
    zoo: str = "weights"
    """Folder of checkpoints; the card of each names its classes, or the data set it was trained on."""
    networks: Annotated[list[str], Field(min_length=1)] | None = Field(None, examples=[["cnn-digits_low-s1000"]])
    """Names of the networks of the folder that may give classes; null: all."""
    max_parameters: Count | None = None
    """Most weights that all clones may add; null: any number."""

    @property
    def needs_sources(self) -> bool:
        """The networks are those of the folder."""
        return False

    def check(self, path: str) -> list[str]:
        """A folder without checkpoints, and what needs images of all classes of each source."""
        found = super().check(path)
        there = [weight_files.stem(file) for file in weight_files.list_checkpoints(Path(self.zoo))]
        if not there:
            found.append(f"{path}.zoo={self.zoo}: there is no checkpoint in it; give {path}.zoo=<folder>")
        if absent := [name for name in self.networks or () if there and name not in there]:
            found.append(
                f"{path}.networks: {self.zoo} has no {', '.join(absent)}; {did_you_mean(absent[0], there, show=99)}"
            )
        if self.use_complement:
            found.append(f"{path}.use_complement=true needs images of all classes of each source; leave it out")
        return found


class FromFileSettings(PncMethodSettings):
    """Clones of files, put on the target and evaluated; nothing is trained."""

    several_sources: ClassVar[bool] = True
    name: str = "from_file"
    """How rows call it."""
    files: Annotated[list[str], Field(min_length=1, examples=[["clone.safetensors"]])]
    """Clone files, in the order of the sources."""

    @property
    def needs_sources(self) -> bool:
        """Whether a clone is stored as a reference to its source."""
        return any(card["reference"] for card in self.read_cards())

    def read_cards(self) -> list[dict[str, Any]]:
        """Of all clones; ConfigError for what is no clone file."""
        return [card for name in self.files for card in read_cards(name).values()]

    def check(self, path: str) -> list[str]:
        """Files that are absent or hold no clone."""
        if absent := [name for name in self.files if not Path(name).is_file()]:
            return [f"{path}.files: there is no {', '.join(absent)}"]
        try:
            self.read_cards()
        except ConfigError as error:
            return [f"{path}.files: {text}" for text in error.problems]
        return []
