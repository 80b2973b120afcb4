"""The images: what stitches are trained on, offspring are searched on, and results are reported on."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

import numpy as np
from torch import Tensor

from recombine.core.errors import ConfigError
from recombine.core.labels import LABELS
from recombine.core.settings import to_dict
from recombine.core.types import Loader
from recombine.data import Data, open_data
from recombine.data.splits import stratified
from recombine.models import Model
from recombine.run.config import DictConfig
from recombine.run.run import Run
from recombine.stitch.supernetwork import Supernetwork

__all__ = ["ImageSplits", "check_classes", "check_labels", "first_images", "open_images"]

SPLIT = "test"
"""What offspring are searched on and results are reported on: images that neither parents nor stitches were trained on.

Deviation: without `search_data` both are parts of one test set; the authors search on another data set.
"""


class ImageSplits:
    """Images for training, for the search and for the test; without `search_data` no image is in two of them."""

    def __init__(self, data: Data, search_data: Data | None, search_fraction: float) -> None:
        """Without `search_data`, a stratified `search_fraction` of the test images of `data` is searched on."""
        self.data, self.search_data, self.search_fraction = data, search_data, search_fraction

    @property
    def sets(self) -> list[Data]:
        """The data sets, one or two."""
        return [self.data] if self.search_data is None else [self.data, self.search_data]

    def close(self) -> None:
        """Close all data sets."""
        for data in self.sets:
            data.close()

    def training_loader(self, model: Model, batch_size: int, *, labelled: bool = False) -> Loader:
        """All training images, augmented, at the size of `model`; `labelled` leaves out those without a label."""
        indices: Sequence[int] = self.data.indices("train", unlabelled=not labelled)  # type: ignore[assignment]
        loader = self.data.loader("train", batch_size, train=True, indices=indices, size=model.size, even=True)
        if loader.crop is None and model.size != model.canvas:  # without random crops: whole images, centre-cropped
            loader = self.data.loader("train", batch_size, train=True, indices=indices, size=model.canvas, even=True)
        return loader  # type: ignore[return-value]

    def search_loader(self, model: Model, batch_size: int, max_batches: int | None = None) -> Loader:
        """The images that offspring are searched on; `max_batches` cuts them short."""
        if self.search_data is not None:
            return _loader(self.search_data, self.search_data.indices(SPLIT), model, batch_size, max_batches)
        return _loader(self.data, self._split_test()[1], model, batch_size, max_batches)

    def test_loader(self, model: Model, batch_size: int, max_batches: int | None = None) -> Loader:
        """The images that results are reported on; `max_batches` cuts them short."""
        indices = self._split_test()[0] if self.search_data is None else self.data.indices(SPLIT)
        return _loader(self.data, indices, model, batch_size, max_batches)

    def _split_test(self) -> tuple[np.ndarray, np.ndarray]:
        """Indices of the test images that are reported on, and of those that are searched on."""
        indices, labels = self.data.indices(SPLIT), self.data.labels(SPLIT)
        seed = self.data.settings.fraction_seed
        test, search = stratified(labels, self.search_fraction, seed, "search_fraction")
        return indices[test], indices[search]


def _loader(data: Data, indices: np.ndarray, model: Model, batch_size: int, max_batches: int | None) -> Loader:
    count = len(indices) if max_batches is None else min(len(indices), max_batches * batch_size)
    chosen = indices[np.arange(count) * len(indices) // max(count, 1)]  # spread evenly: many sets are sorted by class
    return data.loader(SPLIT, batch_size, train=False, indices=chosen, size=model.canvas)  # type: ignore[return-value]


def first_images(loader: Loader, count: int) -> list[Tensor]:
    """The first `count` images of a loader's first epoch in its batches, uint8 [B, 3, H, W] each.

    ConfigError if there are fewer.
    """
    found: list[Tensor] = []
    left = count
    with closing(loader.epoch(0)) as batches:
        while left > 0 and (batch := next(batches, None)) is not None:
            found.append(batch.images[:left].clone())
            left -= loader.batch_size
    if left > 0:
        raise ConfigError(
            f"bn_images={count}: an epoch has {count - left} training images; set bn_images={count - left}"
        )
    return found


def open_images(cfg: DictConfig, run: Run) -> ImageSplits:
    """The data sets of a config, shuffled and augmented by the seed of `run`."""

    def open_(path: str) -> Data:
        return open_data(
            to_dict(cfg[path]),
            path=path,
            loader=cfg.loader,
            data_root=cfg.data_root,
            cache_root=cfg.cache_root,
            seed=run.seed,
            device=run.device,
            rank=run.rank,
            world=run.world,
        )

    data = open_("dataset")
    return ImageSplits(data, open_("search_data") if cfg.get("search_data") else None, cfg.search_fraction)


def check_classes(models: Sequence[Model], images: ImageSplits) -> None:
    """Raise ConfigError if parents and images are not of one task."""
    for model in models:
        for data in images.sets:
            if model.classes != data.classes:
                raise ConfigError(
                    f"{model.name} has {model.classes} classes and {data.name} {data.classes}; both parents and all "
                    f"images have to be of one task"
                )


def check_labels(net: Supernetwork, images: ImageSplits) -> None:
    """Raise ConfigError unless images or pixels have labels, as the parents give logits."""
    task = "segmentation" if net.task.pixels else "classification"
    for data in images.sets:
        if data.task != task:
            gives = f"{net.parents[0].name} and {net.parents[1].name} give {LABELS[task]}"
            raise ConfigError(
                f"{gives}, and {data.name} has {LABELS[data.task]}; take other parents or another dataset"
            )
    model = net.parents[0].model
    if net.task.pixels and model.canvas != model.size:
        raise ConfigError(
            f"{model.name} crops its images (crop_pct={model.crop_pct}), and masks are of whole images: set "
            f"a.crop_pct=1 b.crop_pct=1"
        )
