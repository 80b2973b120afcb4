"""Settings of data sets and loaders."""

from __future__ import annotations

import os
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from recombine.core.builds import Builds, Node
from recombine.core.field_types import FileName
from recombine.core.settings import Settings
from recombine.data.augment_settings import problems_of

__all__ = ["LOADERS", "DatasetSettings", "LoaderSettings", "cores"]

LOADERS = ("ffcv", "device", "torch")
Part = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=1)]


def cores() -> int:
    """CPU cores this process may use, divided among the processes torchrun started on this machine."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, usable // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def _colour(name: str) -> str:
    from PIL import ImageColor

    ImageColor.getrgb(name)
    return name


class LoaderSettings(Settings):
    """Which loader gives the batches; all give the same ones."""

    kind: Literal["ffcv", "device", "torch"] = "ffcv"
    """ffcv: compiled decoding, or torch where FFCV is not installed; device: a small split kept on the device."""
    workers: Literal["auto"] | Annotated[int, Field(ge=0, le=cores())] = "auto"
    """Threads; auto: the cores that this process may use."""


READER = Builds("a reader of images", "dataset=digits", parameters=("folder",), late=("folder",))


class DatasetSettings(Settings):
    """A data set: which one, and which part of it."""

    name: FileName
    """How rows and files call the set."""
    source: str = ""
    """Which known set it is; default: `name`."""
    folder: str = ""
    """Below data_root; default: `name`."""
    reader: Annotated[Node, READER] | None = None
    """A function of one's own, `_target_` and arguments; `reader(folder, ...)` gives `recombine.data.SourceSplits`."""
    classes: Count | None = None
    """Outputs a network needs; null: as many as there are."""
    label_map: str | dict[str, int] | list[int] | None = None
    """Stored label or class name -> label, or the labels of all classes in their order; or a JSON file of that."""
    class_subset: Annotated[list[int | str], Field(min_length=1, examples=[[0, 1, 2]])] | None = None
    """Classes (labels or names) to keep, renumbered 0.. in this order."""
    fraction: Part = 1.0
    """Stratified part of train, drawn with `fraction_seed`."""
    fraction_seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 1234
    """Seed of all parts."""
    test_fraction: Part = 1.0
    """Stratified part of test, drawn with `fraction_seed`."""
    val_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Stratified part of train held out as split `val`, drawn with `fraction_seed`; a folder's own val/ comes first."""
    augment: str | list[Node] = "none"
    """A preset's name or a list of operation nodes, for training batches."""
    download: bool = True
    """Whether an absent set may be fetched."""
    storage: Literal["auto", "raw", "jpeg"] = "auto"
    """How images are stored; auto: raw for images of one size up to 128 px, else jpeg."""
    exif_orientation: bool = True
    """Whether photographs are turned as the camera was held."""
    background: Annotated[str, AfterValidator(_colour)] | None = "white"
    """What shows through transparent pixels: a colour's name or #rrggbb; null: the colours stored there."""
    pixel_range: Annotated[list[float], Field(min_length=2, max_length=2, examples=[[0, 4095]])] | None = None
    """Black and white in images of more than 8 bits; null: as the values of a folder's images say, else all 16 bits."""
    max_side: Annotated[int, Field(ge=8)] | None = 512
    """Larger images are shrunk to this longer side when stored; null keeps them."""
    samples: Count = 512
    """Training images of source fake."""
    image_size: Count = 32
    """Pixels of source fake."""

    def check(self, path: str) -> list[str]:
        """Augmentation that cannot be made, a range without extent."""
        flat = self.pixel_range is not None and self.pixel_range[0] >= self.pixel_range[1]
        wrong = (
            [f"{path}.pixel_range={self.pixel_range}: black has to be below white, such as [0,4095]"] if flat else []
        )
        return wrong + problems_of(self.augment, f"{path}.augment")
