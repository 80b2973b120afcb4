"""A folder of images split for choosing: what is trained on, what is chosen on, and what is looked at once."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from recombine.core.errors import ConfigError
from recombine.data.tree import TEST_FOLDERS, images_by_class

__all__ = ["SplitFolder", "split_folder"]

HELD_OUT = 1 / 6
"""Part of each class that becomes validation, and test, images where the folder has none of its own."""
Files = Mapping[str, Sequence[Path]]
"""Images by class."""


@dataclass(frozen=True)
class SplitFolder:
    """Two folders of links to the images: their `train/` is the same, their `test/` is not."""

    choose: Path
    """Its test images are the validation images: everything is chosen on them."""
    final: Path
    """Its test images are the test images: read once, at the end."""
    counts: Mapping[str, int]
    """Images of train, val and test."""
    class_names: list[str]


def split_folder(images: Path, into: Path) -> SplitFolder:
    """Link the images of `images` into `into/choose` and `into/final`.

    `images/train` with `images/test` or `images/val` are taken as they are; what is missing is held out of the
    training images, the same ones each time: by the digest of their bytes, so that copies of an image stay together.
    Raises ConfigError for a folder without two classes of at least three images.
    """
    train = images_by_class(images / "train") if (images / "train").is_dir() else images_by_class(images)
    given = {name: images_by_class(images / name) for name in TEST_FOLDERS if (images / "train").is_dir()}
    given = {name: files for name, files in given.items() if files}
    test = given.pop("test", None) or (given.popitem()[1] if len(given) > 1 else None)
    val = given.popitem()[1] if given else None
    if len(train) < 2:
        found = f"the classes {', '.join(train)}" if train else "no images in folders"
        raise ConfigError(f"{images}: {found}; at least two folders of images are needed, one for each class")
    if test is None:
        train, test = _hold_out(train, images)
    if val is None:
        train, val = _hold_out(train, images)
    strange = sorted((set(test) | set(val)) - set(train))
    if strange:
        raise ConfigError(f"{images}: no training images of {', '.join(strange)}, which other splits have")
    splits = {"train": train, "val": val, "test": test}
    for name, held_out in (("choose", val), ("final", test)):
        shutil.rmtree(into / name, ignore_errors=True)
        _link(train, into / name / "train")
        _link(held_out, into / name / "test")
    counts = {name: sum(map(len, files.values())) for name, files in splits.items()}
    return SplitFolder(into / "choose", into / "final", counts, sorted(train))


def _hold_out(files: Files, images: Path) -> tuple[dict[str, list[Path]], dict[str, list[Path]]]:
    """(kept, held out) of each class; at least one image each."""
    kept: dict[str, list[Path]] = {}
    held: dict[str, list[Path]] = {}
    for name, members in files.items():
        copies: dict[str, list[Path]] = {}
        for file in members:
            copies.setdefault(hashlib.sha256(file.read_bytes()).hexdigest(), []).append(file)
        if len(copies) < 3:
            raise ConfigError(
                f"{images}: class {name} has {len(copies)} different images to train on; at least 3 are needed to "
                f"hold some out (give images/train, images/val and images/test to split them yourself)"
            )
        wanted = max(1, math.floor(len(members) * HELD_OUT))
        kept[name], held[name] = [], []
        for digest in sorted(copies):
            (held if len(held[name]) < wanted else kept)[name].extend(copies[digest])
    return kept, held


def _link(files: Files, into: Path) -> None:
    """Links by class; two images of one name in sub-folders of a class get numbers."""
    for name, members in files.items():
        (into / name).mkdir(parents=True, exist_ok=True)
        for number, file in enumerate(members):
            link = into / name / file.name
            os.symlink(file.resolve(), link.with_stem(f"{link.stem}-{number}") if link.exists() else link)
