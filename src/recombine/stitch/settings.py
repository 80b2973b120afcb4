"""Settings of Stitching."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from recombine.core.builds import Builds, Node
from recombine.core.field_types import Seed
from recombine.core.labels import LABELS
from recombine.core.settings import Settings
from recombine.data.checks import check as check_data
from recombine.data.checks import task_of
from recombine.data.settings import DatasetSettings, LoaderSettings
from recombine.engine.settings import OptimizerNode, ScheduleNode, TrainingSettings
from recombine.models.checks import check_model
from recombine.models.serialization import kind_of, read_card
from recombine.models.settings import ModelSettings, Network, name_of, named_twice

__all__ = ["MatchingSettings", "RetrainSettings", "StitchMethodSettings", "StitchSearchSettings", "StitchSettings"]

TASKS = ("classification", "segmentation")
"""What parents may be trained for."""
Count = Annotated[int, Field(ge=1)]
Whole = Annotated[int, Field(ge=0)]
Population = Annotated[int, Field(ge=4, examples=[128])]
Steering = Annotated[float, Field(ge=0, le=1)]


class MatchingSettings(Settings):
    """Which nodes of the parents are joined."""

    granularity: Literal["op", "block"] = "op"
    """op: every operation, as in the paper. block: the ends of residual or dense blocks, for large parents."""
    resize: bool = False
    """Whether maps of different sizes, up to a factor of two, and maps and tokens are joined too."""
    depth_tiebreak: Annotated[float, Field(ge=0, lt=1)] = 1e-3
    """How much a difference in depth counts against a pair; it never costs one."""
    restarts: Whole = 100
    """Random orders tried where the first matching is not known to be a largest one."""
    time_limit: Annotated[float, Field(ge=0)] = 60.0
    """Seconds for restarts and branch and bound."""
    max_matches: Annotated[int, Field(ge=1, examples=[168])] | None = None
    """Keep this many pairs, evenly spread in depth; null: all."""


class StitchMethodSettings(Settings):
    """How stitches get their weights."""

    name: str = "stitch"
    """The method's name in rows."""
    init: Literal["default", "lstsq", "matched"] = "default"
    """default: PyTorch's; lstsq: least squares on `init_images`; matched: that, each channel scaled to the variance of
    its target."""
    init_images: Count = 1024
    """Training images that lstsq and matched see."""
    loss: Literal["none", "features", "joint_features", "distill", "labels"] = "features"
    """none: stitches stay as they start. features: squared error on features of the untouched parents, as in the paper.
    The others train sampled offspring: joint_features by the same error inside of them, distill to the ensemble of the
    parents without labels, labels by cross entropy."""
    sampled_offspring: Count = 4
    """Offspring sampled for every batch, where `loss` trains some."""
    sampled_stitches: Annotated[float, Field(ge=1)] = 1.5
    """Stitches that are on in one of them, on average."""
    learn_share: bool = False
    """Whether distill and labels also learn how much each of two outputs counts in an ensemble; else half each."""

    def check(self, path: str) -> list[str]:
        """Weights of outputs that nothing trains."""
        if self.learn_share and self.loss not in ("distill", "labels"):
            told = f"{path}.learn_share=true has nothing to learn from with {path}.loss={self.loss}"
            return [f"{told}; set {path}.loss=distill or {path}.loss=labels"]
        return []


class StitchSearchSettings(Settings):
    """A search for offspring."""

    name: str = "search"
    """The search's name in rows."""


class RandomSearchSettings(StitchSearchSettings, target="recombine.stitch.search.random.RandomSearch"):
    """Stratified random samples."""

    name: str = "random"
    """The search's name in rows."""
    population: Population = 128
    """Samples in a batch."""


class Nsga2Settings(StitchSearchSettings, target="recombine.stitch.search.nsga2.Nsga2"):
    """NSGA-II."""

    name: str = "nsga2"
    """The search's name in rows."""
    population: Population = 128
    """Individuals."""


class FamilialGaSettings(StitchSearchSettings, target="recombine.stitch.search.ga.FamilialGa"):
    """Genetic algorithm in which children compete with their parents."""

    population: Population = 128
    """Individuals."""
    steering: Steering = 0.5
    """Accuracy required by the time all of the budget is spent; the requirement grows from 0. 0: none."""


class GomeaSettings(FamilialGaSettings, target="recombine.stitch.search.gomea.Gomea"):
    """Gene-pool optimal mixing by a linkage tree of the population."""


class LkGomeaSettings(FamilialGaSettings, target="recombine.stitch.search.gomea.LkGomea"):
    """GOMEA with linkage kernels: linkage and donors from each individual's neighbourhood."""


class SingleStitchSweepSettings(StitchSearchSettings, target="recombine.stitch.search.sweep.SingleStitchSweep"):
    """Both parents, their ensemble and every network with a single stitch."""

    name: str = "single_stitch_sweep"
    """The search's name in rows."""


class RetrainSettings(Settings):
    """Training of the saved offspring with labels, after the search."""

    what: Literal["none", "stitches", "all"] = "none"
    """The weights that are trained: those of the stitches, all, or none."""
    batch_size: Count = 8
    """Samples of a training step."""
    max_steps: Whole | None = 1000
    """Training steps, at most one epoch; null: one epoch."""
    optimizer: OptimizerNode
    """The optimizer."""
    schedule: ScheduleNode
    """The learning rate over the training."""


class StitchSettings(TrainingSettings):
    """Join two networks and search for offspring that beat both."""

    a: ModelSettings
    """The first parent."""
    b: ModelSettings
    """The second parent, of the same task."""
    parents: list[Network] | None = Field(None, examples=[["resnet20", "resnet32", "resnet56"]])
    """Any number of parents in place of `a` and `b`: the first two are crossed, then the best offspring on the search
    images and the third, and so on; a row for each cross."""
    dataset: DatasetSettings
    """The images: stitches are trained on its training images, results are reported on its test images."""
    search_data: DatasetSettings | None = None
    """Offspring are searched on the test images of this data set; null: on a part of those of `dataset`."""
    search_fraction: Annotated[float, Field(gt=0, lt=1, examples=[0.1])] = 0.5
    """Part of the test images of `dataset` that offspring are searched on; results are reported on the others."""
    loader: LoaderSettings = LoaderSettings()
    """The loader."""
    matching: MatchingSettings = MatchingSettings()
    """Which nodes of the parents are joined."""
    method: Annotated[
        Node,
        Builds(
            "a method of stitching",
            "method=stitch_matched",
            StitchMethodSettings,
            base="recombine.stitch.settings.StitchMethodSettings",
        ),
    ]
    """How stitches get their weights."""
    bn_images: Whole = 0
    """Training images on which BatchNorms behind stitches estimate their statistics again, for every offspring and
    every file of one; 0: they keep their parents'."""
    ensemble: Literal["logits", "probs"] = "logits"
    """What offspring with two outputs average: logits, as in the paper, or probabilities."""
    stitch_seed: Seed = 0
    """Seed of the stitches: searches with different seeds share one supernetwork."""
    search: Annotated[
        Node,
        Builds(
            "a search",
            "search=ga_familial",
            StitchSearchSettings,
            base="recombine.stitch.search.base.Search",
            late=("space", "budget", "seed"),
        ),
    ]
    """The search algorithm."""
    budget: Annotated[int, Field(ge=1, examples=[5000])] = 5000
    """Networks that a search may request."""
    budget_unit: Literal["requests", "unique"] = "requests"
    """What the budget counts: all requests, as in the paper, or different networks."""
    expected_stitches: Annotated[float, Field(gt=0)] = 2.0
    """Stitches that are on in an individual of the stratified sample a search starts with, on average; 6.2 in the
    paper."""
    performance: Literal["accuracy", "miou", "loss"] = "accuracy"
    """First objective, beside the cost: accuracy, miou where pixels have labels, or loss, which rewards calibration
    too."""
    racing_alpha: Annotated[float, Field(ge=0, lt=1, examples=[0.01])] = 0.01
    """Networks are dropped before they have seen all search images where they are worse than a cheaper one, at this
    probability of an error in each comparison; 0: all networks see all images."""
    max_cost: Annotated[int, Field(ge=1, examples=[1000000000])] | None = None
    """Multiply-adds of an image that no offspring may exceed; null: any."""
    max_parameters: Annotated[int, Field(ge=1, examples=[5000000])] | None = None
    """Parameters that no offspring may exceed; null: any."""
    eval_batch_networks: Count = 32
    """Networks evaluated in one pass over the images; more share more layers and need more memory."""
    num_saved: Whole = 5
    """Networks of the front that are written to files: its offspring, then parents and ensemble if they are on it, each
    the most accurate on the search images first."""
    retrain: RetrainSettings
    """Training of these with labels."""

    def check(self, path: str) -> list[str]:
        """Absent files and weights of both parents and of the data, and what is of another task than the data."""
        task = task_of(self.dataset)
        problems = check_data(self.dataset, self.data_root, tasks=TASKS)
        if self.search_data is not None and not problems:
            problems += check_data(self.search_data, self.data_root, path="search_data", tasks=(task,))
        problems += self._parent_problems(task if task in TASKS else TASKS[0])
        if str(self.search["_target_"]).endswith(".SingleStitchSweep") and (self.max_cost or self.max_parameters):
            told = "search=single_stitch_sweep measures every network with one stitch"
            problems.append(f"{told}; set max_cost=null and max_parameters=null")
        score = "miou" if task == "segmentation" else "accuracy"
        if task in TASKS and self.performance not in (score, "loss"):
            what = f"performance={self.performance}, and dataset={self.dataset.name} has {LABELS[task]}"
            problems.append(f"{what}; set performance={score} or performance=loss")
        return problems

    def _parent_problems(self, task: str) -> list[str]:
        """Parents that are absent, named twice, or of another task."""
        if self.parents is None:
            nodes: dict[str, Network] = {"a": self.a, "b": self.b}
            same = self.a.model_dump() == self.b.model_dump()
            problems = [f"a and b are both {self.a.name}; offspring need two networks, such as model@b=resnet32"] * same
        else:
            nodes = {f"parents.{k}": node for k, node in enumerate(self.parents)}
            problems = named_twice("parents", self.parents)
            if len(self.parents) < 2:
                problems.append("parents: at least two are needed, such as parents=[resnet20,resnet32,resnet56]")
            if len(self.parents) > 2 and not self.num_saved:
                problems.append("num_saved=0: the next cross takes a saved offspring; set num_saved=1")
        for path, node in nodes.items():
            name = name_of(node)
            if kind_of(name) == "offspring":
                problems += self._other_task(path, name, read_card(name, "offspring").get("task", TASKS[0]))
                problems += _own_settings(path, node) if isinstance(node, ModelSettings) else []
            elif path in ("a", "b"):
                problems += check_model(node, self.weights_root, frozen=True, path=path, task=task)
            else:
                found = check_model(node, self.weights_root, frozen=True, task=task)
                problems += [f"{path}: {text}" for text in found]
        return problems

    def _other_task(self, path: str, name: str, own: str) -> list[str]:
        """An offspring of networks that were made for other labels."""
        if own == task_of(self.dataset):
            return []
        gives = f"{path}={name} is made for {LABELS[own]}"
        return [f"{gives}, and dataset={self.dataset.name} has {LABELS[task_of(self.dataset)]}; take others"]


def _own_settings(name: str, model: ModelSettings) -> list[str]:
    """Settings of a parent that is an offspring file, which holds all of them itself."""
    defaults = ModelSettings(name=model.name).model_dump()
    given = [key for key, value in model.model_dump().items() if value != defaults.get(key)]
    if not given:
        return []
    told = " and ".join(f"{name}.{key}={getattr(model, key)}" for key in given)
    return [f"{told}: {model.name} is an offspring, which is taken as it is; leave it out, with model@{name}=any"]
