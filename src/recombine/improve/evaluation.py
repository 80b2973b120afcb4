"""The networks on the images: classifiers fitted, teachers ranked, and which images each network gets right."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from recombine import data as datasets
from recombine import models
from recombine.core.errors import ConfigError
from recombine.engine.evaluate import predict
from recombine.flips.heads import fit_heads
from recombine.improve.folder import SplitFolder
from recombine.improve.names import short_name
from recombine.models import Model
from recombine.models.export import OneTask
from recombine.models.model import Preprocess

__all__ = ["Evaluation", "Teacher", "preprocess_of"]

BATCH = 64
LOADER = {"kind": "torch", "workers": 0}
AUGMENT = "crop_resize"
"""Of training images, where the network still knows them then: random parts, half of them mirrored."""
KNOWN = 0.75
"""Least part of the images it knows that it has to know so."""
LOOKED_AT = 1024
"""Images this is seen on."""


class Teacher(NamedTuple):
    """A network of the zoo with its classifier for the images, under `name` in the work folder; validation images."""

    name: str
    accuracy: float
    """Percent."""
    complementary: float
    """Percent of images that it gets right and the original does not."""


class Evaluation:
    """Measures networks on the validation images and, at the end, on the test images."""

    def __init__(self, split: SplitFolder, work: Path) -> None:
        self.split, self.work = split, work
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.choose, self.final = self.open(split.choose), self.open(split.final)

    def open(self, folder: Path, augment: str = "none") -> datasets.Data:
        """The images of one of the split's folders."""
        node = {"name": "folder", "source": "folder", "folder": str(folder.resolve()), "augment": augment}
        where: dict[str, Any] = {"data_root": "", "cache_root": self.work / "cache", "seed": 0, "device": self.device}
        return datasets.open_data(node, loader=LOADER, **where)

    def prepare(self, network: str, weights_root: str, name: str) -> Model:
        """A network for the images' classes, kept in the work folder under `name`.

        With as many classes as the images it keeps its classifier; else one is fitted to the training images.
        """
        path = self.work / "weights" / f"{name}.safetensors"
        if path.exists():
            return models.build(str(path))
        model = models.build(network, weights_root=weights_root)
        if model.classes != self.choose.classes:
            model = models.build(network, classes=self.choose.classes, weights_root=weights_root)
            model = fit_heads(model.to(self.device), self.choose.loader("train", BATCH, train=False, size=model.canvas))
        models.save(model, path, {"dataset": "folder", "class_names": self.split.class_names})
        return model

    def choose_augment(self, network: Model) -> tuple[str, float]:
        """How training images are augmented: `crop_resize`, or `none` where the network does not know them so.

        Parts of photographs show what the whole shows, and mirrored they do too; parts of digits, letters and many
        medical images do not. Also the part, in percent, of the training images it knows that it knows in parts.
        """
        network, data = network.to(self.device).eval(), self.open(self.split.choose, AUGMENT)
        right, batch = {}, min(BATCH, len(data.indices("train")))
        for name, images in (("whole", self.choose), ("parts", data)):
            loader = images.loader("train", batch, train=True, size=network.size if name == "parts" else network.canvas)
            with torch.no_grad():
                parts = islice(loader.epoch(0), LOOKED_AT // BATCH)
                right[name] = sum(int((network(b.images).argmax(1) == b.labels).sum()) for b in parts)
        data.close()
        known = right["parts"] / max(1, right["whole"])
        return (AUGMENT if known >= KNOWN else "none"), 100 * known

    def measure(self, network: nn.Module, task: str | None = None, *, final: bool = False) -> np.ndarray:
        """Which validation images (`final`: test images) a network gets right, bool [n]; `task` of a patched one."""
        data = self.final if final else self.choose
        images = data.loader("test", BATCH, train=False, size=preprocess_of(network).canvas)
        network = network.to(self.device)
        found = predict(network if task is None else OneTask(network, task), images, precision="fp32")
        return (found.logits.argmax(1) == found.labels).numpy()

    def rank_teachers(self, networks: list[str], weights_root: str, original: np.ndarray) -> Iterator[Teacher | str]:
        """Each network of the zoo, or in words why it cannot teach."""
        for network in networks:
            name = short_name(network)
            try:
                correct = self.measure(self.prepare(network, weights_root, name))
            except ConfigError as error:
                yield f"{name} is left out: {str(error).splitlines()[0]}"
                continue
            yield Teacher(name, 100 * float(correct.mean()), 100 * float((correct & ~original).mean()))

    def close(self) -> None:
        """Close the data."""
        self.choose.close()
        self.final.close()


def preprocess_of(network: nn.Module) -> Preprocess:
    """Of a model, or of the base of a patched one."""
    return network.preprocess if isinstance(network, Model) else network.base.preprocess  # type: ignore
