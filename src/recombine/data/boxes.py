"""Images with boxes around their objects: VOC's and COCO's files, checked before anything is trained."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from recombine.core.errors import ConfigError
from recombine.core.files import write_atomically
from recombine.data.pixels import Decoding, open_image, orientation, shown
from recombine.data.settings import cores
from recombine.data.storage import FileReader, SourceSplits, identity_of_files
from recombine.data.tree import held_out, split_roots

__all__ = ["BoxReader", "box_folder", "check_boxes", "coco", "seen_boxes", "voc_detection"]

log = logging.getLogger(__name__)
SHOWN = 10  # problems
COLUMNS = 6
"""left, top, right, bottom in pixels, label, 1 where the object does not count (VOC: difficult, COCO: a crowd)."""


class BoxReader(FileReader):
    """Image files with the boxes of their objects; the `labels` of whole images are zeros."""

    def __init__(
        self,
        paths: Sequence[str | Path],
        boxes: Sequence[np.ndarray],
        sizes: Sequence[tuple[int, int]] | np.ndarray,
        root: Path,
        files: Sequence[str | Path],
    ) -> None:
        """`boxes`: float32 [n, 6] of each image, see `COLUMNS`; `sizes`: height and width; `files`: what was read."""
        super().__init__(paths, np.zeros(len(paths), np.int64), root)
        self.sizes, self.files = np.asarray(sizes, np.int64).reshape(-1, 2), [str(file) for file in files]
        self.boxes = [_inside(each, size) for each, size in zip(boxes, self.sizes, strict=True)]

    @property
    def identity(self) -> str:
        """Names, sizes and times of all images and annotation files."""
        return identity_of_files([*self.paths, *self.files], self.root, b"boxes")

    @property
    def most(self) -> int:
        """Boxes of the image that has most, at least one."""
        return max([1, *map(len, self.boxes)])

    def take(self, index: np.ndarray) -> BoxReader:
        """The same collection with only these positions."""
        chosen = [self.paths[i] for i in index], [self.boxes[i] for i in index], self.sizes[index]
        return BoxReader(*chosen, self.root, self.files)

    def padded(self, index: np.ndarray, rectangles: np.ndarray, size: int, table: np.ndarray) -> np.ndarray:
        """Boxes of images as `seen_boxes` gives them: float32 [n, most, 6]; label -1 where there is none.

        `table`: the label of each stored class, negative if it is not in use.
        """
        found = np.full((len(index), self.most, COLUMNS), -1, np.float32)
        for place, (i, rectangle) in enumerate(zip(index, rectangles, strict=True)):
            labels = table[self.boxes[i][:, 4].astype(int)]
            boxes = np.column_stack([self.boxes[i][:, :4], labels, self.boxes[i][:, 5]])[labels >= 0]
            boxes = seen_boxes(boxes, rectangle, size)
            found[place, : len(boxes)] = boxes
        return found


def _inside(boxes: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Boxes cut at the borders of their image; those without extent are left out."""
    boxes = np.asarray(boxes, np.float32).reshape(-1, COLUMNS).copy()
    boxes[:, :4] = np.clip(boxes[:, :4], 0, [size[1], size[0], size[1], size[0]])
    return boxes[(boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])]


def seen_boxes(boxes: np.ndarray, rectangle: np.ndarray, size: int) -> np.ndarray:
    """Boxes [n, 6] as they lie in a part of their image (`crop.cut`) that is resized to `size` pixels.

    Those whose centre lies outside of it are left out, as in SSD (Liu et al., ECCV 2016); the others are cut.
    """
    top, left, height, width, mirrored = rectangle
    moved = boxes.astype(np.float32)
    moved[:, [0, 2]] = (moved[:, [0, 2]] - left) * (size / width)
    moved[:, [1, 3]] = (moved[:, [1, 3]] - top) * (size / height)
    if mirrored:
        moved[:, [0, 2]] = size - moved[:, [2, 0]]
    centres = (moved[:, :2] + moved[:, 2:4]) / 2
    moved = moved[((centres >= 0) & (centres <= size)).all(1)]
    moved[:, :4] = np.clip(moved[:, :4], 0, size)
    return moved


def check_boxes(samples: BoxReader, decoding: Decoding, cache_root: Path) -> None:
    """Raise ConfigError with every image of another size than its annotation says, or that cannot be read.

    Every image is opened once; what was found right is remembered in `cache_root`.
    """
    done = cache_root / "inspections" / f"boxes-{samples.identity}-{decoding}"
    if done.exists():
        return
    with ThreadPoolExecutor(cores()) as pool:
        problems = [text for text in pool.map(partial(_problem, samples, decoding), range(len(samples))) if text]
    if problems:
        more = [f"... and {len(problems) - SHOWN} more images"] if len(problems) > SHOWN else []
        raise ConfigError(problems[:SHOWN] + more)
    if empty := sum(not len(boxes) for boxes in samples.boxes):
        log.warning("%s: %d of %d images have no box", samples.root, empty, len(samples))
    write_atomically(done, "")


def _problem(samples: BoxReader, decoding: Decoding, i: int) -> str | None:
    try:
        image = open_image(samples[i], samples.where(i))
    except ConfigError as error:
        return str(error)
    turned = decoding.exif_orientation and orientation(image) in (5, 6, 7, 8)
    width, height = image.size[::-1] if turned else image.size
    if (height, width) == tuple(samples.sizes[i]):
        return None
    said = f"{samples.sizes[i][1]} x {samples.sizes[i][0]}"
    hint = ", as it is turned (dataset.exif_orientation=false leaves it)" * turned
    return f"{samples.where(i)} is {width} x {height} px{hint}, and its annotation says {said}: its boxes do not fit"


def voc_detection(place: Path, train: str, test: str, names: Sequence[str]) -> SourceSplits:
    """Objects of PASCAL VOC: the images that ImageSets/Main/<train>.txt and <test>.txt list."""

    def split(listing: str) -> BoxReader:
        listed = (place / f"ImageSets/Main/{listing}.txt").read_text().split()
        files = [place / f"Annotations/{name}.xml" for name in listed]
        found = [_voc_objects(file, names) for file in files]
        images = [place / f"JPEGImages/{name}.jpg" for name in listed]
        return BoxReader(images, [boxes for boxes, _ in found], [size for _, size in found], place, files)

    return SourceSplits({"train": lambda: split(train), "test": lambda: split(test)}, names)


def _voc_objects(file: Path, names: Sequence[str]) -> tuple[np.ndarray, tuple[int, int]]:
    """Boxes and size (height, width) of one annotation; pixels are numbered from 1 and the last one is inside."""
    try:
        root = ElementTree.parse(file).getroot()
        size = int(root.findtext("size/height", "")), int(root.findtext("size/width", ""))
        boxes = []
        for thing in root.iter("object"):
            corners = [float(thing.findtext(f"bndbox/{key}", "")) for key in ("xmin", "ymin", "xmax", "ymax")]
            label = names.index(thing.findtext("name", ""))
            counts_not = float(thing.findtext("difficult", "0") == "1")
            boxes.append([corners[0] - 1, corners[1] - 1, corners[2], corners[3], label, counts_not])
    except (OSError, ElementTree.ParseError, ValueError) as error:
        raise ConfigError(f"{shown(str(file))} is no annotation of VOC: {error}") from error
    return np.array(boxes, np.float32).reshape(-1, COLUMNS), size


def coco(place: Path) -> SourceSplits:
    """COCO as distributed: annotations/instances_<split>.json of train2017 and val2017, which is the test split."""
    parts = {"train": "train2017", "test": "val2017"}
    files = {split: place / f"annotations/instances_{part}.json" for split, part in parts.items()}
    there = {split: file for split, file in files.items() if file.is_file()}
    names = _categories(next(iter(there.values())))
    splits = {split: partial(_coco_split, file, place / parts[split], names) for split, file in there.items()}
    return SourceSplits(splits, list(names.values()))


def box_folder(place: Path) -> SourceSplits:
    """A folder of one's own: images/ and annotations.json as COCO has it, or train/, val/ and test/ with both.

    Without a test/, val/ is the test split; without either, one sixth is held out.
    """
    roots = {split: root for split, root in split_roots(place).items() if (root / "annotations.json").is_file()}
    names = _categories(next(iter(roots.values()), place) / "annotations.json")
    if not roots:
        return held_out(lambda: _coco_split(place / "annotations.json", place / "images", names), list(names.values()))
    if "test" not in roots and "val" in roots:
        roots["test"] = roots.pop("val")
    splits = {split: partial(_coco_split, r / "annotations.json", r / "images", names) for split, r in roots.items()}
    return SourceSplits(splits, list(names.values()))


def _read_json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if not all(isinstance(found[key], list) for key in ("images", "annotations", "categories")):
            raise TypeError("images, annotations and categories are lists")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{file} is not as COCO's annotations are, with lists images, annotations and categories: {error}"
        ) from error
    return found


def _categories(file: Path) -> dict[Any, str]:
    """Class names by id, in the order of the ids."""
    found = _read_json(file)["categories"]
    try:
        return {each["id"]: str(each["name"]) for each in sorted(found, key=lambda each: each["id"])}
    except (KeyError, TypeError) as error:
        raise ConfigError(f"{file}: a category needs an id and a name: {error}") from error


def _coco_split(file: Path, images: Path, names: dict[Any, str]) -> BoxReader:
    """The images of one annotation file, in the order of their ids, with their boxes (left, top, width, height)."""
    found, number = _read_json(file), {key: label for label, key in enumerate(names)}
    try:
        listed = sorted(found["images"], key=lambda image: image["id"])
        boxes: dict[Any, list[list[float]]] = {image["id"]: [] for image in listed}
        for each in found["annotations"]:
            left, top, width, height = each["bbox"]
            crowd = float(bool(each.get("iscrowd", 0)))
            boxes[each["image_id"]].append([left, top, left + width, top + height, number[each["category_id"]], crowd])
        sizes = [(image["height"], image["width"]) for image in listed]
        paths = [images / image["file_name"] for image in listed]
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{file}: an image or annotation lacks, or names something unknown: {error}") from error
    if absent := [str(path) for path in paths if not path.is_file()]:
        more = ", ..." * (len(absent) > 3)
        raise ConfigError(f"{len(absent)} of {len(paths)} images of {file} are absent: {', '.join(absent[:3])}{more}")
    return BoxReader(paths, [np.array(boxes[image["id"]], np.float32) for image in listed], sizes, images, [file])
