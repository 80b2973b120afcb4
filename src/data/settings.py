"""The options of a `dataset` config node, checked."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from src.core.errors import ConfigError

__all__ = ["LOADERS", "DataSettings"]

LOADERS = ("ffcv", "resident", "torch")
STORAGE = ("auto", "raw", "jpeg")


@dataclass(frozen=True)
class DataSettings:
    """Every key of `config/dataset/*.yaml`; unknown keys, wrong types and impossible values are ConfigErrors."""

    name: str
    """How rows and files call the set."""
    source: str = ""
    """A name of `sources.KNOWN`; default: `name`."""
    folder: str = ""
    """Below data_root; default: `name`."""
    classes: int | None = None
    """Outputs a network needs; default: as many as there are."""
    label_map: str | None = None
    """JSON file in the folder: stored label or class name -> label."""
    class_subset: Sequence | None = None
    """Classes (labels or names) to keep, renumbered 0.. in this order."""
    fraction: float = 1.0
    """Stratified part of train, drawn with `fraction_seed`."""
    fraction_seed: int = 1234
    test_fraction: float = 1.0
    """Stratified part of test, drawn with `fraction_seed`."""
    val_fraction: float = 0.0
    """Stratified part of train held out as split `val`, drawn with `fraction_seed`."""
    augment: Any = "none"
    """A preset's name or a list of operation nodes (src/data/augment.py), for training batches."""
    download: bool = True
    """Whether an absent set may be fetched."""
    storage: str = "auto"
    """raw, jpeg, or auto: raw for images of one size up to 128 px, else jpeg."""
    max_side: int | None = 512
    """Larger images are shrunk to this longer side when stored; null keeps them."""
    samples: int = 512
    """Training images of source fake."""
    image_size: int = 32
    """Pixels of source fake."""

    @classmethod
    def of(cls, node: Mapping) -> DataSettings:
        """From a config node (or any mapping)."""
        given = dict(node)
        known = {field.name for field in fields(cls)}
        wrong = []
        for key in given.keys() - known:
            close = difflib.get_close_matches(key, known, 1)
            wrong.append(f"dataset.{key} is unknown" + (f": did you mean dataset.{close[0]}?" if close else ""))
        if not isinstance(given.get("name"), str) or not given["name"]:
            wrong.append("dataset.name is missing: a string")
        if wrong:
            raise ConfigError(wrong)
        settings = cls(**{key: value for key, value in given.items() if value is not None or key in NULLABLE})
        wrong = settings._problems()
        if wrong:
            raise ConfigError(wrong)
        return settings

    def _problems(self) -> list[str]:
        wrong = []
        for key, low in (("fraction", 0.0), ("test_fraction", 0.0), ("val_fraction", -1.0)):
            value = getattr(self, key)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not low < value <= 1 or value < 0 or (key == "val_fraction" and value == 1):
                allowed = "0 <= x < 1" if key == "val_fraction" else "0 < x <= 1"
                wrong.append(f"dataset.{key}={value}: a number with {allowed}")
        for key, least in (("classes", 1), ("fraction_seed", 0), ("max_side", 8), ("samples", 1), ("image_size", 1)):
            value = getattr(self, key)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
                wrong.append(f"dataset.{key}={value}: an integer of at least {least}")
        if self.storage not in STORAGE:
            wrong.append(f"dataset.storage={self.storage}: one of {', '.join(STORAGE)}")
        if not isinstance(self.download, bool):
            wrong.append(f"dataset.download={self.download}: true or false")
        if self.class_subset is not None and (isinstance(self.class_subset, str) or not len(self.class_subset)):
            wrong.append(f"dataset.class_subset={self.class_subset}: a list, for example [0,1,2]")
        return wrong


NULLABLE = ("classes", "label_map", "class_subset", "max_side")
