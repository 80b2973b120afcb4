"""Readers of the layouts in which image sets lie on disk; each returns the splits it finds, opened when first used."""

from __future__ import annotations

import gzip
import math
import os
import re
import zipfile
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from recombine.core.errors import ConfigError
from recombine.data.splits import stratified_halves
from recombine.data.storage import ArrayReader, BytesReader, FileReader, SourceSplits, identity_of_files
from recombine.data.tree import TEST_FOLDERS, held_out, scan, tree

__all__ = ["cub", "digits", "domain", "fake", "idx", "omniglot", "tiny_imagenet"]
__all__ += ["torchvision_arrays", "torchvision_files", "ucf", "voc"]

VOC = "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person pottedplant"
VOC_CLASSES = (*VOC.split(), "sheep", "sofa", "train", "tvmonitor")


def digits() -> SourceSplits:
    """scikit-learn's 1,797 handwritten digits of 8 x 8 px, its 17 grey levels spread over 0..255; no file needed."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images, labels = np.rint(data.images * 255 / 16).astype(np.uint8), data.target
    train, test = stratified_halves(labels)
    splits = {
        "train": lambda: ArrayReader(images[train], labels[train]),
        "test": lambda: ArrayReader(images[test], labels[test]),
    }
    return SourceSplits(splits, [str(i) for i in range(10)])


def fake(samples: int, size: int, classes: int) -> SourceSplits:
    """Noise around a mean colour per class: for trying things out; a fifth as many test images as training images."""

    def make(seed: int, count: int) -> ArrayReader:
        rng = np.random.default_rng(seed)
        colours = np.random.default_rng(0).integers(40, 215, (classes, 1, 1, 3))
        labels = np.arange(count) % classes
        images = np.clip(colours[labels] + rng.normal(0, 40, (count, size, size, 3)), 0, 255)
        return ArrayReader(images.astype(np.uint8), labels)

    splits = {"train": lambda: make(1, samples), "test": lambda: make(2, max(classes, samples // 5))}
    return SourceSplits(splits, [f"class {i}" for i in range(classes)])


def idx(place: Path) -> SourceSplits:
    """MNIST's IDX files, plain or .gz, in the folder `place`."""

    def load(name: str) -> np.ndarray:
        file = place / name
        data = file.read_bytes() if file.exists() else gzip.decompress((place / f"{name}.gz").read_bytes())
        shape = np.frombuffer(data, ">i4", data[3], 4)
        if len(data) != 4 + 4 * data[3] + math.prod(shape.tolist()):
            raise ConfigError(f"{file} is truncated: delete it, then dataset.download=true")
        return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(shape)

    def split(prefix: str) -> ArrayReader:
        return ArrayReader(load(f"{prefix}-images-idx3-ubyte"), load(f"{prefix}-labels-idx1-ubyte"))

    there = {
        name: prefix for name, prefix in (("train", "train"), ("test", "t10k")) if any(place.glob(f"{prefix}-im*"))
    }
    return SourceSplits({name: partial(split, prefix) for name, prefix in there.items()}, [])


def torchvision_arrays(place: Path, kind: str, train: dict, test: dict) -> SourceSplits:
    """A torchvision data set that holds its images as one array."""
    from torchvision import datasets

    def load(options: dict) -> ArrayReader:
        try:
            data = getattr(datasets, kind)(str(place), **options)
        except (OSError, RuntimeError) as error:
            raise ConfigError(f"torchvision cannot read {kind} in {place}: {error}") from error
        images = np.asarray(data.data)
        images = np.moveaxis(images, 1, -1) if images.ndim == 4 and images.shape[1] == 3 else images
        return ArrayReader(images, data.targets if hasattr(data, "targets") else data.labels)

    return SourceSplits({"train": lambda: load(train), "test": lambda: load(test)}, [])


def torchvision_files(place: Path, kind: str, train: list[dict], test: list[dict]) -> SourceSplits:
    """A torchvision data set of image files; several option sets are put one after the other."""
    from torchvision import datasets

    def load(options: list[dict]) -> FileReader:
        pairs = []
        for chosen in options:
            try:
                data = getattr(datasets, kind)(str(place), **chosen)
            except (OSError, RuntimeError) as error:
                raise ConfigError(f"torchvision cannot read {kind} in {place}: {error}") from error
            if hasattr(data, "loader"):
                data.loader = str  # torchvision then hands out the path instead of a decoded image
                pairs += [data[i] for i in range(len(data))]
            else:
                pairs += data._samples
        return FileReader([path for path, _ in pairs], [label for _, label in pairs], place)

    return SourceSplits({"train": lambda: load(train), "test": lambda: load(test)}, [])


def ucf(place: Path) -> SourceSplits:
    """UCF101 as one image per video, v_<class>_g<group>_c<clip>: the official split 1 has groups 1 to 7 as test."""
    found = tree(place)
    names = list(found.class_names)
    if not names or (place / "train").is_dir() or any((place / name).is_dir() for name in TEST_FOLDERS):
        return found
    files = scan(place, names)
    groups = [match for path in files.paths if (match := re.search(r"_g(\d+)_c\d+", os.path.basename(path)))]
    if len(groups) < len(files.paths):
        return found
    test = np.array([int(match[1]) <= 7 for match in groups])
    return SourceSplits(
        {"train": lambda: files.take(np.flatnonzero(~test)), "test": lambda: files.take(np.flatnonzero(test))}, names
    )


def tiny_imagenet(place: Path) -> SourceSplits:
    """Tiny ImageNet as distributed: train/<id>/images/*.JPEG, val/images/*.JPEG with val_annotations.txt."""
    names = (place / "wnids.txt").read_text().split()
    names.sort()

    def test() -> FileReader:
        rows = [line.split("\t")[:2] for line in (place / "val/val_annotations.txt").read_text().splitlines()]
        return FileReader(
            [place / "val/images" / file for file, _ in rows], [names.index(name) for _, name in rows], place
        )

    return SourceSplits({"train": lambda: scan(place / "train", names), "test": test}, names)


def cub(place: Path) -> SourceSplits:
    """CUB-200-2011's own lists: images.txt, image_class_labels.txt, train_test_split.txt, classes.txt."""

    def column(file: str) -> list[str]:
        return [line.split()[1] for line in (place / file).read_text().splitlines()]

    def split(training: str) -> FileReader:
        rows = zip(column("images.txt"), column("image_class_labels.txt"), column("train_test_split.txt"), strict=True)
        selected = [(place / "images" / path, int(label) - 1) for path, label, train in rows if train == training]
        return FileReader([path for path, _ in selected], [label for _, label in selected], place)

    names = [name.partition(".")[2] for name in column("classes.txt")]
    return SourceSplits({"train": lambda: split("1"), "test": lambda: split("0")}, names)


def domain(place: Path, name: str) -> SourceSplits:
    """One DomainNet domain: <name>_train.txt and <name>_test.txt with lines `<name>/<class>/<file> <label>`."""

    def rows(split: str) -> list[list[str]]:
        return [line.rsplit(" ", 1) for line in (place / f"{name}_{split}.txt").read_text().splitlines() if line]

    def files(split: str) -> FileReader:
        return FileReader([place / path for path, _ in rows(split)], [int(label) for _, label in rows(split)], place)

    names = {int(label): path.split("/")[1] for path, label in rows("train")}
    return SourceSplits(
        {split: partial(files, split) for split in ("train", "test")}, [names[i] for i in sorted(names)]
    )


def voc(place: Path) -> SourceSplits:
    """PASCAL VOC 2007 as classification: the images of trainval and test all of whose objects share one class.

    An image with objects of several classes has no single right label and is left out; objects marked difficult
    do not count (the challenge ignores them too).
    """

    def split(listing: str) -> FileReader:
        paths, labels = [], []
        for name in (place / f"ImageSets/Main/{listing}.txt").read_text().split():
            objects = ElementTree.parse(place / f"Annotations/{name}.xml").iter("object")
            kinds = {thing.findtext("name") for thing in objects if thing.findtext("difficult") != "1"}
            if len(kinds) == 1:
                paths.append(place / f"JPEGImages/{name}.jpg")
                labels.append(VOC_CLASSES.index(kinds.pop()))
        return FileReader(paths, labels, place)

    return SourceSplits({"train": lambda: split("trainval"), "test": lambda: split("test")}, VOC_CLASSES)


def omniglot(place: Path) -> SourceSplits:
    """Omniglot characters (class = alphabet/character) of the background and evaluation zips, or of their folders."""
    images: dict[str, bytes] = {}
    sources = sorted(place.glob("images_*"))
    for source in sources:
        if source.is_dir():
            images |= {str(path.relative_to(source)): path.read_bytes() for path in source.rglob("*.png")}
        elif source.suffix == ".zip" and source.with_suffix("") not in sources:
            with zipfile.ZipFile(source) as archive:
                members = [name for name in archive.namelist() if name.endswith(".png")]
                images |= {name.partition("/")[2]: archive.read(name) for name in members}
    paths = sorted(images)
    names = sorted({path.rpartition("/")[0] for path in paths})
    number = {name: i for i, name in enumerate(names)}
    labels = [number[path.rpartition("/")[0]] for path in paths]
    identity = identity_of_files([s for s in sources if s.is_file()], place, "\n".join(paths).encode())
    return held_out(lambda: BytesReader([images[path] for path in paths], labels, paths, identity), names)
