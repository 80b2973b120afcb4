"""What is wrong with data before anything is opened: absent files, splits and label maps. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recombine.core.errors import ConfigError
from recombine.core.labels import LABELS
from recombine.core.settings import find_problems
from recombine.data.settings import DatasetSettings
from recombine.data.sources import DATASETS, problems, splits_of
from recombine.data.splits import read_label_map

__all__ = ["TASKS", "check", "check_node", "check_search_split", "task_of"]

TASKS = ("classification", "segmentation", "detection")
EXAMPLES = {"classification": "digits", "segmentation": "camvid", "detection": "voc_detection"}


def check(
    settings: DatasetSettings,
    data_root: str | Path,
    split: str | None = None,
    *,
    path: str = "dataset",
    tasks: Sequence[str] = ("classification",),
) -> list[str]:
    """What is wrong with the files of a data set and with its `split`, as messages; `tasks`: what can be done here."""
    if settings.reader is not None:
        return []  # what it reads is its own affair
    if (task := task_of(settings)) not in tasks:
        needed = " or ".join(LABELS[each] for each in tasks)
        return [
            f"{path}={settings.name} has {LABELS[task]}, and here {needed} is needed, such as "
            f"{path}={EXAMPLES[tasks[0]]}"
        ]
    folder, root = settings.folder or settings.name, Path(data_root)
    absent = problems(settings.source or settings.name, folder, root, settings.download)
    wrong = absent or _unknown_split(split, settings, folder, root)
    try:
        read_label_map(settings.label_map, root / folder)
    except ConfigError as error:
        wrong += [text.replace("dataset.", f"{path}.", 1) for text in error.problems]
    return wrong


def check_search_split(split: str | None) -> list[str]:
    """What is wrong with choosing settings by what is measured on `split`: test images decide nothing."""
    if split not in ("test", None):
        return []
    told = "test: a search would choose by test images" if split else "null: a search has nothing to choose by"
    return [f"split={told}; set split=val dataset.val_fraction=0.1, and measure the best one on test images afterwards"]


def task_of(settings: DatasetSettings) -> str:
    """Whether images have a label (classification), pixels (segmentation) or boxes (detection), for a known set."""
    known = DATASETS.get(settings.source or settings.name)
    return known.task if known else "classification"


def check_node(
    node: Mapping[str, Any], data_root: str | Path, path: str, tasks: Sequence[str] = ("classification",)
) -> list[str]:
    """Everything wrong with a dataset node in a list of several: its settings and its files."""
    wrong = find_problems(DatasetSettings, node, path)
    return wrong or check(DatasetSettings.of(node), data_root, path=path, tasks=tasks)


def _unknown_split(split: str | None, settings: DatasetSettings, folder: str, root: Path) -> list[str]:
    """Judged by the files; of a set that is yet to be fetched, by what every such set has."""
    if split is None:
        return []
    try:
        there = splits_of(settings.source or settings.name, folder, root)
    except ConfigError as error:
        return error.problems
    there = (*there, *(["val"] if settings.val_fraction and "train" in there else []))
    held = "; dataset.val_fraction=0.2 split=val holds out a part of train" if there == ("train",) else ""
    return [] if split in there else [f"split={split}: {settings.name} has {', '.join(there)}{held}"]
