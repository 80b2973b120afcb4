"""What a folder of images holds, looked at before anything is trained: every file is opened once, and remembered."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recombine.core.console import track
from recombine.core.errors import ConfigError, DamagedError
from recombine.core.files import read_json, write_json
from recombine.data.pixels import decode, is_deep, open_image, orientation, shown, unreadable
from recombine.data.settings import cores
from recombine.data.sources import Source
from recombine.data.storage import FileReader
from recombine.data.tree import left_out

__all__ = ["Inspection", "inspect"]

SMALL = 64  # pixels: JPEGs are decoded at about this size, which reads all of their data and costs a fraction
FORMAT = 1


@dataclass
class Inspection:
    """Findings by kind; files by their paths."""

    counts: dict[str, dict[str, int]]
    """Images by split and class; "" for those without a label."""
    left_out: dict[str, list[str]]
    """Files that are not used, by reason."""
    unreadable: list[str]
    """Sentences."""
    constant: list[str]
    """Pictures of one colour."""
    repeated: list[list[str]]
    """The same file in several splits or classes."""
    turned: int
    """Images whose EXIF data say that they have to be turned."""
    transparent: int
    deep: dict[str, list[float]]
    """Smallest and largest value of images with more than eight bits, by format."""

    @property
    def pixel_range(self) -> tuple[float, float] | None:
        """The values that are black and white in images with more than eight bits, read off all of them; None if
        there are none. ConfigError if the values do not tell."""
        if not self.deep:
            return None
        lows, highs = zip(*self.deep.values(), strict=True)
        low, high = min(lows), max(highs)
        whole = "F" not in self.deep
        ends = [2.0**bits - 1 for bits in ((8, 10, 12, 14, 16) if whole else (8, 16))]
        ends = ends if whole or high > 1 else [1.0]
        if low >= 0 and high <= ends[-1] and (whole or len(self.deep) == 1):
            return 0.0, next(end for end in ends if high <= end)
        if not whole and len(self.deep) == 1 and low >= -1 and high <= 1:
            return -1.0, 1.0
        raise ConfigError(
            f"images of {' and '.join(self.deep)} with values from {low:g} to {high:g}: which are black and white? "
            f"dataset.pixel_range=[{low:g},{high:g}]"
        )

    def problems(self) -> list[str]:
        """Why nothing can be trained on it."""
        return self.unreadable

    def remarks(self) -> list[str]:
        """What to know about it, a sentence each."""
        found = [f"{len(paths)} left out: {reason}{_some(paths)}" for reason, paths in self.left_out.items()]
        if self.constant:
            found.append(f"{len(self.constant)} of a single colour{_some(self.constant)}")
        found += [f"{len(group)} times the same picture: {', '.join(group[:4])}" for group in self.repeated[:5]]
        if len(self.repeated) > 5:
            found.append(f"... {len(self.repeated)} pictures are in several splits or classes")
        names = [name for name in next(iter(self.counts.values()), {}) if name]
        if len(names) == 1:
            found.append(f"a single class, {names[0]}: whatever is predicted is right")
        if len(names) > 1 and all(name.isdecimal() for name in names) and sorted(names, key=int) != names:
            found.append(f"class folders that are numbers are sorted as text: label 0 is {names[0]}, 1 is {names[1]}")
        for split, counts in self.counts.items():
            absent = [name for name, count in counts.items() if not count and name]
            if absent and any(count for name, count in counts.items() if name):  # else it has no labels at all
                found.append(f"no image in {split} of {', '.join(absent[:10])}")
        if self.turned:
            found.append(f"{self.turned} turned as their EXIF data say (dataset.exif_orientation=false leaves them)")
        if self.transparent:
            found.append(f"{self.transparent} with transparency, put on dataset.background")
        return found

    def summary(self) -> str:
        """Classes, and images of each split, in a line."""
        names = [name for name in next(iter(self.counts.values()), {}) if name]
        parts = [f"{split} {sum(n for name, n in counts.items() if name)}" for split, counts in self.counts.items()]
        bare = sum(counts.get("", 0) for counts in self.counts.values())
        return f"{len(names)} classes; {', '.join(parts)} images" + (f", {bare} without a label" if bare else "")


def _some(paths: list[str]) -> str:
    return f": {', '.join(os.path.basename(path) for path in paths[:3])}{', ...' if len(paths) > 3 else ''}"


def inspect(source: Source, cache_root: Path | None = None) -> Inspection:
    """Look at every file of a class tree; with `cache_root`, only at a tree that was not looked at before."""
    splits = {name: source.samples(name) for name in source.splits}
    files = {name: samples for name, samples in splits.items() if isinstance(samples, FileReader)}
    skipped = left_out(source.place)
    path = _remembered_at(cache_root, files, skipped) if cache_root else None
    if path and (found := _recall(path)):
        return found
    names = source.class_names
    everything = [(split, i) for split, samples in files.items() for i in range(len(samples))]
    with ThreadPoolExecutor(cores()) as pool:
        looked = pool.map(lambda place: _look(files[place[0]], place[1]), everything)
        facts = list(track(looked, len(everything), f"looking at {source.place.name}"))
    counts = {
        split: {name: int((samples.labels == k).sum()) for k, name in enumerate(names)}
        | ({"": bare} if (bare := int((samples.labels < 0).sum())) else {})
        for split, samples in files.items()
    }
    places = [(split, int(files[split].labels[i]), files[split].where(i)) for split, i in everything]
    shown_skipped = {reason: [shown(path) for path in paths] for reason, paths in skipped.items()}
    found = _gathered(counts, shown_skipped, places, facts)
    if path:
        _remember(path, found)
    return found


def _look(samples: FileReader, i: int) -> dict[str, Any]:
    """What there is to know of a file; `error` if it cannot be read."""
    where = samples.where(i)
    try:
        data = samples[i]
        image = open_image(data, where)
        facts: dict[str, Any] = {"digest": hashlib.blake2b(data, digest_size=16).hexdigest()}
        facts |= {"turned": orientation(image) != 1, "transparent": image.has_transparency_data}
        if image.format == "JPEG":
            image.draft("RGB", (SMALL, SMALL))
        try:
            image.load()
        except (OSError, SyntaxError, ValueError, MemoryError) as error:
            raise unreadable(data, where, error) from error
        values = np.asarray(image if image.mode != "P" else image.convert("RGBA"))
        if is_deep(image):
            if not np.isfinite(values).all():
                raise ConfigError(f"{where} holds values that are no numbers: replace or remove it")
            facts["deep"] = "F" if image.mode == "F" else "I", float(values.min()), float(values.max())
        constant = bool((values == values[:1, :1]).all())
        if constant and image.format == "JPEG":  # at the small size fine structure has no say
            values = decode(data, where)
            constant = bool((values == values[:1, :1]).all())
        return facts | {"constant": constant}
    except ConfigError as error:
        return {"error": str(error)}


def _gathered(
    counts: dict, skipped: dict, places: list[tuple[str, int, str]], facts: list[dict[str, Any]]
) -> Inspection:
    groups: dict[str, list[int]] = {}
    for k, fact in enumerate(facts):
        groups.setdefault(fact.get("digest", f"unreadable {k}"), []).append(k)
    repeated = [[places[k][2] for k in group] for group in groups.values() if len({places[k][:2] for k in group}) > 1]
    deep: dict[str, list[float]] = {}
    for kind, low, high in (fact["deep"] for fact in facts if "deep" in fact):
        known = deep.setdefault(kind, [low, high])
        deep[kind] = [min(known[0], low), max(known[1], high)]
    tally = Counter(key for fact in facts for key in ("turned", "transparent") if fact.get(key))
    return Inspection(
        counts,
        skipped,
        unreadable=[fact["error"] for fact in facts if "error" in fact],
        constant=[place[2] for place, fact in zip(places, facts, strict=True) if fact.get("constant")],
        repeated=repeated,
        turned=tally["turned"],
        transparent=tally["transparent"],
        deep=deep,
    )


def _remembered_at(cache_root: Path, files: Mapping[str, FileReader], skipped: Mapping[str, list[str]]) -> Path:
    digest = hashlib.blake2b(f"{FORMAT}{sorted(map(repr, skipped.items()))}".encode(), digest_size=16)
    for split, samples in files.items():
        digest.update(f"{split} {samples.root} {samples.identity}".encode(errors="surrogateescape"))
    return cache_root / "inspections" / f"{digest.hexdigest()}.json"


def _recall(path: Path) -> Inspection | None:
    try:
        return Inspection(**read_json(path)) if path.exists() else None
    except (DamagedError, TypeError):  # or of another version: looked at again
        return None


def _remember(path: Path, found: Inspection) -> None:
    with suppress(OSError):  # it is looked at again the next time
        write_json(path, asdict(found))
