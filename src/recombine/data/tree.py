"""Folders of images named by class, as people have them: what is a class, what is a split, what is left out and why."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from itertools import combinations
from pathlib import Path

from recombine.core.errors import ConfigError
from recombine.data.pixels import shown
from recombine.data.splits import UNLABELLED, stratified_halves
from recombine.data.storage import IMAGES, BytesReader, FileReader, SampleReader, SourceSplits

__all__ = [
    "TEST_FOLDERS",
    "has_images",
    "held_out",
    "image_paths",
    "images_by_class",
    "left_out",
    "plain_name",
    "scan",
    "split_roots",
    "tree",
]

TEST_FOLDERS = ("test", "val", "valid", "validation")
SPLIT_FOLDERS = {"train": "train", "test": "test", **dict.fromkeys(("val", "valid", "validation"), "val")}
"""Folder name in lower case -> split."""
JUNK = ("__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found", "__pycache__")
"""What archives, network drives and notebooks leave beside images; so are names that begin with a dot."""
BROKEN = "link to a file that is not there"
LOOP = "link back to a folder above it"


def tree(place: Path, skip: Sequence[str] = ()) -> SourceSplits:
    """The class folders below train/, val/ and test/, or of `place` itself: then one sixth is held out as test.

    Without a labelled test/, val/ is the test split. Images that lie in train/ itself have no label; where there are no
    others, no class is known. Raises ConfigError for folders that are no set of classes: a wrapper, classes without an
    image or that only the test has.
    """
    roots = split_roots(place)
    if not roots:
        names = _classes(place, skip)
        _refuse(place, {"": (place, names)})
        return held_out(cache(lambda: _several(scan(place, names), names)), names)
    found = {split: (root, _classes(root, skip)) for split, root in roots.items()}
    if "test" in found and not found["test"][1] and len(found) > 1:
        del found["test"]  # without labels: nothing can be measured on it
    if "test" not in found and "val" in found:
        found["test"] = found.pop("val")
    _refuse(place, found)
    names = sorted({name for _, classes in found.values() for name in classes})
    scans = {split: partial(scan, root, names, loose=split == "train") for split, (root, _) in found.items()}
    return SourceSplits(scans, names)


def _several(files: FileReader, names: Sequence[str]) -> FileReader:
    """The files, unless a class has a single one, which cannot be in two splits."""
    if single := [name for label, name in enumerate(names) if (files.labels == label).sum() == 1]:
        listed = ", ".join(single)
        raise ConfigError(f"{files.root}: a single image of {listed}; add some, or give train/ and test/ yourself")
    return files


def held_out(load: Callable[[], FileReader | BytesReader], names: Sequence[str]) -> SourceSplits:
    """Split a set without an official split: stratified, one sixth for testing."""

    def half(which: int) -> SampleReader:
        samples = load()
        return samples.take(stratified_halves(samples.labels)[which])

    return SourceSplits({"train": lambda: half(0), "test": lambda: half(1)}, names)


def scan(root: Path, names: Sequence[str], *, loose: bool = False) -> FileReader:
    """The images below the folders `names`, labelled by their place in it; then, if `loose`, those without a folder."""
    paths, labels = [], []
    for label, name in enumerate(names):
        images = [path for path, reason in _walk(root / name) if reason in ("", BROKEN)]
        paths += images
        labels += [label] * len(images)
    if loose:
        images = [path for path, reason in _walk(root, deep=False) if reason in ("", BROKEN)]
        paths += images
        labels += [UNLABELLED] * len(images)
    return FileReader(paths, labels, root)


def image_paths(folder: Path) -> list[Path]:
    """Every image below a folder."""
    return [Path(path) for path, reason in _walk(folder) if not reason]


def images_by_class(folder: Path) -> dict[str, list[Path]]:
    """The images below each class folder; nothing for a folder that is not there."""
    names = _classes(folder) if folder.is_dir() else []
    return {name: images for name in names if (images := image_paths(folder / name))}


def has_images(folder: Path) -> bool:
    """Whether an image lies somewhere below a folder."""
    return any(not reason for _, reason in _walk(folder))


def left_out(place: Path) -> dict[str, list[str]]:
    """What a class tree does not use, by reason: paths, of a folder those of all files below it."""
    found: dict[str, list[str]] = {}
    roots = split_roots(place)
    for split, root in (roots or {"": place}).items():
        loose = "" if split == "train" else "lies in no class folder"
        if split == "test" and not _classes(root):
            loose = f"{root.name}/ has no class folders and thus no labels" + "; val/ is the test split" * (
                "val" in roots
            )
        for path, reason in _walk(root):
            if reason := reason or (loose if os.path.dirname(path) == str(root) else ""):
                inside = [os.path.join(folder, file) for folder, _, files in os.walk(path) for file in sorted(files)]
                found.setdefault(reason, []).extend([path] if reason == LOOP else inside or [path])
    if roots:
        beside = [path for path, reason in _walk(place, deep=False) if not reason]
        beside += [e.path for e in _folders(place) if Path(e.path) not in roots.values()]
        found |= {"lies beside the folders of the splits": beside} if beside else {}
    return found


def _walk(folder: str | Path, above: tuple = (), *, deep: bool = True) -> Iterator[tuple[str, str]]:
    """Every file below a folder with why it is left out, "" for an image: its files by name, then its folders.

    Links are followed, but for one that leads back to a folder above it.
    """
    if not os.path.isdir(folder):
        return
    status = os.stat(folder)
    above = (*above, (status.st_dev, status.st_ino))
    entries = _entries(folder)
    inner = [entry for entry in entries if _is_folder(entry)]
    for entry in entries:
        if entry not in inner:
            yield entry.path, _reason(entry)
    for entry in inner if deep else ():
        here = entry.stat()
        if _is_junk(entry.name):
            yield entry.path, f"hidden or left by a program ({entry.name})"
        elif (here.st_dev, here.st_ino) in above:
            yield entry.path, LOOP
        else:
            yield from _walk(entry.path, above)


def _entries(folder: str | Path) -> list[os.DirEntry]:
    try:
        return sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be read: {error.strerror}") from error


def _is_folder(entry: os.DirEntry) -> bool:
    """Whether it is a folder or leads to one; a link in a circle is none."""
    return entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and os.path.isdir(entry.path))


def _reason(entry: os.DirEntry) -> str:
    if _is_junk(entry.name):
        return "hidden or left by a program (._*)" if entry.name.startswith("._") else "hidden"
    if entry.is_symlink() and not os.path.exists(entry.path):
        return BROKEN
    suffix = os.path.splitext(entry.name)[1].lower()
    return "" if suffix in IMAGES else f"no image by its name ({suffix or 'without suffix'})"


def _is_junk(name: str) -> bool:
    return name.startswith(".") or name in JUNK


def _folders(root: Path) -> list[os.DirEntry]:
    return [entry for entry in _entries(root) if not _is_junk(entry.name) and _is_folder(entry)]


def _classes(root: Path, skip: Sequence[str] = ()) -> list[str]:
    return [entry.name for entry in _folders(root) if entry.name not in skip]


def split_roots(place: Path) -> dict[str, Path]:
    """The folders of the splits; none if there are none, or if they are classes called so beside others.

    Raises ConfigError where two folders are the same split.
    """
    named: dict[str, list[Path]] = {}
    others = False
    for entry in _folders(place) if place.is_dir() else []:
        if split := SPLIT_FOLDERS.get(entry.name.lower()):
            named.setdefault(split, []).append(Path(entry.path))
        else:
            others = others or has_images(Path(entry.path))
    if others and not any(_classes(root) for roots in named.values() for root in roots):
        return {}
    if doubles := [roots for roots in named.values() if len(roots) > 1]:
        raise ConfigError(
            [f"{place}: {' and '.join(r.name for r in roots)} are one split; rename or join them" for roots in doubles]
        )
    order = [split for split in ("train", "val", "test") if split in named]
    return {split: named[split][0] for split in order}


def _refuse(place: Path, found: Mapping[str, tuple[Path, list[str]]]) -> None:
    """Raise ConfigError with everything that is wrong with the class folders of each split."""
    names = sorted({name for _, classes in found.values() for name in classes})
    if not names and list(found) == ["train"] and image_paths(found["train"][0]):
        return  # images without labels serve methods that read none
    if not names:
        raise ConfigError(f"{place} has no class folders: expected <class>/<image> below it, or below train/ and test/")
    if problems := [*_wrappers(found), *_unlike(found), *_empty(found, names), *_unprintable(names)]:
        raise ConfigError([f"{place}: {text}" for text in problems])


def _wrappers(found: Mapping[str, tuple[Path, list[str]]]) -> Iterator[str]:
    """Single folders that hold the class folders, or the splits."""
    for split, (root, names) in found.items():
        if len(names) != 1 or any(not reason for _, reason in _walk(root / names[0], deep=False)):
            continue
        inner = [entry.name for entry in _folders(root / names[0]) if has_images(Path(entry.path))]
        if len(inner) > 1 or any(name.lower() in SPLIT_FOLDERS for name in inner):
            held = ", ".join(inner[:5]) + (", ..." if len(inner) > 5 else "")
            mend = "move them one folder up" if split else f"give dataset.folder={os.path.abspath(root / names[0])}"
            yield f"{names[0]}/ is a folder around the classes ({held}), not a class; {mend}"


def _unlike(found: Mapping[str, tuple[Path, list[str]]]) -> Iterator[str]:
    """Classes that the training images do not have, and spellings that differ between splits."""
    if "train" not in found or not found["train"][1]:  # without classes: its images have no labels
        return
    alike = set()
    for one, other in combinations(found, 2):
        mine, theirs = set(found[one][1]), set(found[other][1])
        spelled = {plain_name(name): name for name in sorted(mine - theirs)}
        for name in sorted(theirs - mine):
            if plain_name(name) in spelled:
                alike.add(name)
                yield f"{one}/ has '{spelled[plain_name(name)]}' and {other}/ has '{name}': give both the same name"
    for split, (root, names) in found.items():
        extra = [name for name in names if name not in found["train"][1] and name not in alike]
        if split != "train" and extra:
            listed = ", ".join(extra[:10]) + (", ..." if len(extra) > 10 else "")
            yield f"{root.name}/ has classes that train/ has not: {listed}; move them out, or images of them in"


def plain_name(name: str) -> str:
    """A name without what people take for the same: case, spaces, accents written in another way."""
    return "".join(c for c in unicodedata.normalize("NFKC", name).casefold() if c not in " \t_-")


def _empty(found: Mapping[str, tuple[Path, list[str]]], names: Sequence[str]) -> Iterator[str]:
    needed = [found["train"]] if "train" in found else list(found.values())
    empty = [n for n in names if any(n in c for _, c in needed) and not any(has_images(r / n) for r, _ in needed)]
    if empty:
        listed = ", ".join(empty[:10]) + (", ..." if len(empty) > 10 else "")
        yield f"no image in the class folder{'s' * (len(empty) > 1)} {listed}; remove it, or put images in"


def _unprintable(names: Sequence[str]) -> Iterator[str]:
    odd = [shown(name) for name in names if shown(name) != name]
    if odd:
        yield f"a class name is written into files, and {', '.join(odd)} is no UTF-8; rename the folder"
