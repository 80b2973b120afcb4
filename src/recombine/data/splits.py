"""Subsets by index: stratified parts, class subsets with relabelling, label maps."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from recombine.core.errors import ConfigError

__all__ = [
    *("EXCLUDED", "UNLABELLED", "Relabel", "class_labels", "read_label_map", "stratified", "stratified_halves"),
    "told_of",
]

HELD_OUT = 1 / 6
HELD_OUT_SEED = 123
UNLABELLED, EXCLUDED = -1, -2
"""The labels of images that have none, and of those of classes that are not in use."""


def stratified(labels: np.ndarray, fraction: float | int, seed: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Positions of (the rest, a stratified part of size `fraction`, or of as many samples), both ascending.

    One draw of scikit-learn's StratifiedShuffleSplit with `test_size=fraction`, `random_state=seed` on the labels in
    stored order. Raises ConfigError naming the setting `name` where a class is too small for it.
    """
    from sklearn.model_selection import StratifiedShuffleSplit

    try:
        split = StratifiedShuffleSplit(n_splits=1, test_size=fraction, random_state=seed)
        rest, part = next(split.split(np.zeros(len(labels)), labels))
    except ValueError as error:
        present, counts = np.unique(labels, return_counts=True)
        least = math.ceil(1000 * len(counts) / len(labels)) / 1000
        told = f"each of {len(counts)} classes needs a sample on either side"
        if counts.min() == 1:
            single = ", ".join(str(label) for label in present[counts == 1][:10])
            told = f"a class needs two samples at least, and there is one of label {single}; add images or leave it out"
        elif least <= 0.5:
            told += f"; try {name}={min(max(fraction, least), 1 - least):g}"
        raise ConfigError(f"{name}={fraction} of {len(labels)} samples cannot be stratified: {told}") from error
    return np.sort(rest), np.sort(part)


def stratified_halves(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(train, test) positions of a set without an official split: one sixth is test, always the same.

    Of fewer than six samples a class, as many are test as there are classes.
    """
    classes = len(np.unique(labels))
    part = HELD_OUT if HELD_OUT * len(labels) >= classes else classes
    return stratified(labels, part, HELD_OUT_SEED, "the held-out part")


def class_labels(setting: str, given: Sequence[int | str], names: Sequence[str]) -> list[int]:
    """The labels of classes that a setting gives by label or by name, in its order.

    Raises ConfigError for unknown and repeated ones, and for a number that is one class's label and another's name.
    """
    known = {name: label for label, name in enumerate(names)}
    wrong = [c for c in given if not (c in known or (isinstance(c, int) and 0 <= c < len(names)))]
    if wrong or not given:
        some = ", ".join(f"{label} ({name})" for label, name in enumerate(names[:12])) + ", ..." * (len(names) > 12)
        raise ConfigError(
            f"{setting}={list(given)}: {wrong or 'nothing'} not among {len(names)} classes; known are {some}"
        )
    double = [c for c in given if isinstance(c, int) and known.get(str(c), c) != c]
    if double:
        c = double[0]
        raise ConfigError(
            f"{setting}={list(given)}: {c} is the label of class '{names[c]}' and the name of another; "
            f"give names, in quotes: {setting}=\"['{c}']\" or {setting}=\"['{names[c]}']\""
        )
    chosen = [c if isinstance(c, int) else known[c] for c in given]
    if len(set(chosen)) != len(chosen):
        raise ConfigError(f"{setting}={list(given)} names a class twice")
    return chosen


@contextmanager
def told_of(path: str) -> Iterator[None]:
    """Settings of a data set in messages, as `dataset.fraction=2`, by the place in the config where they are."""
    try:
        yield
    except ConfigError as error:
        error.problems = [text.replace("dataset.", f"{path}.") for text in error.problems]
        error.args = ("\n".join(error.problems),)
        raise


class Relabel:
    """From the numbers a source gives its classes to the labels a task uses.

    `mapping` (a label map) comes first, then `subset`: only these classes stay, numbered 0.. in the order given.
    """

    def __init__(self, names: Sequence[str], mapping: Mapping | Sequence | None, classes: int | None, subset) -> None:
        self.table = _table(names, mapping) if mapping is not None else np.arange(len(names))
        if (self.table < 0).any():
            missing = [str(names[i]) for i in np.flatnonzero(self.table < 0)[:5]]
            raise ConfigError(f"dataset.label_map says nothing about {', '.join(missing)}")
        if not len(self.table) and classes is None:
            raise ConfigError("no image has a label: give dataset.classes=<outputs of the networks>")
        self.classes = classes or int(self.table.max()) + 1
        if self.table.max(initial=-1) >= self.classes:
            raise ConfigError(f"labels reach {self.table.max()}: dataset.classes={self.table.max() + 1} at least")
        self.names = [f"class {i}" for i in range(self.classes)]
        for stored, label in enumerate(self.table):
            self.names[label] = str(names[stored])
        if subset is not None:
            self._keep(list(subset))

    def _keep(self, subset: list) -> None:
        chosen = class_labels("dataset.class_subset", subset, self.names)
        new = {old: i for i, old in enumerate(chosen)}
        self.table = np.array([new.get(int(label), EXCLUDED) for label in self.table])
        self.names = [self.names[i] for i in chosen]
        self.classes = len(chosen)

    def __call__(self, stored: np.ndarray) -> np.ndarray:
        """Labels of stored class numbers; negative ones stand for images without a label."""
        if len(stored) and stored.max() >= len(self.table):
            raise ConfigError(f"the files hold label {stored.max()} but only {len(self.table)} classes are named")
        return np.where(stored < 0, UNLABELLED, self.table[stored] if len(self.table) else UNLABELLED)


def read_label_map(label_map: str | Mapping | Sequence | None, folder: Path) -> Mapping | Sequence | None:
    """A label map that is given, or that a JSON file in `folder` holds.

    {stored label or class name: label}, a list by label, or an object with one list; None if none is given.
    """
    if not isinstance(label_map, str):
        return label_map
    path = folder / label_map
    if not path.exists():
        raise ConfigError(f"dataset.label_map={label_map}: there is no {path}")
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"dataset.label_map={path.name}: cannot read {path} ({error})") from error
    if isinstance(content, dict):
        lists = [v for v in content.values() if isinstance(v, list) and v and all(isinstance(i, int) for i in v)]
        if len(lists) == 1:
            return lists[0]
    labels = content.values() if isinstance(content, dict) else content if isinstance(content, list) else [None]
    if not all(isinstance(label, int) for label in labels):
        raise ConfigError(f"{path} is no label map: needs {{label or name: label}} or one list of integers")
    return content


def _table(names: Sequence[str], mapping: Mapping | Sequence) -> np.ndarray:
    if not isinstance(mapping, Mapping):
        if len(mapping) != len(names):
            raise ConfigError(f"dataset.label_map lists {len(mapping)} labels for {len(names)} classes")
        return np.asarray(mapping, np.int64)
    by_name = all(name in mapping for name in names)  # names may be numbers, which are labels otherwise
    found = [mapping.get(name if by_name else str(i), mapping.get(name, -1)) for i, name in enumerate(names)]
    return np.array(found, np.int64)
