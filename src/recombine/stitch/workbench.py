"""The parents with their images: what stitches learn from, what offspring are searched on, what they are tested on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from recombine import data as datasets
from recombine import models as zoo
from recombine.core.errors import ConfigError
from recombine.core.types import Loader
from recombine.data import Data
from recombine.data.splits import stratified
from recombine.engine.evaluate import Predictions, predict
from recombine.models import Model
from recombine.run.config import DictConfig, plain
from recombine.run.console import show
from recombine.run.run import Run
from recombine.stitch.parents import common_preprocessing
from recombine.stitch.supernetwork import Supernetwork

__all__ = ["Workbench"]

SPLIT = "test"
"""What is searched on and tested on: images that neither parent nor stitch was trained on.

Deviation: without `search_data` both are parts of one test set; the authors search on another set (section 10.1).
"""


class Workbench:
    """Two trained models of one task and its images."""

    def __init__(self, cfg: DictConfig, run: Run) -> None:
        self.cfg, self.run = cfg, run
        self.training_run = replace(run, seed=cfg.stitch_seed)
        """Searches with different seeds share one supernetwork."""
        self._opened: list[Data] = []
        self.data = self._open(plain(cfg.dataset))
        given = plain(cfg).get("search_data")
        self.search_data = self._open(given) if given else None
        self.models = tuple(self._model(node) for node in (cfg.a, cfg.b))
        if problems := common_preprocessing(self.models):
            raise ConfigError(problems)
        if self.models[0].digest() == self.models[1].digest():
            raise ConfigError("a and b are the same network; offspring need two, such as b=resnet32")

    def _open(self, node: dict) -> Data:
        roots = {"data_root": self.cfg.data_root, "cache_root": self.cfg.cache_root, "loader": self.cfg.loader}
        where = {"device": self.run.device, "rank": self.run.rank, "world": self.run.world}
        self._opened.append(datasets.open_data(node, **roots, seed=self.training_run.seed, **where))
        return self._opened[-1]

    def _model(self, node: DictConfig) -> Model:
        model = zoo.build(node, weights_root=self.cfg.weights_root, seed=self.run.seed)
        for data in self._opened:
            if model.classes != data.classes:
                raise ConfigError(
                    f"{model.name} has {model.classes} classes and {data.name} {data.classes}; both parents and all "
                    f"images have to be of one task"
                )
        return model.to(self.run.device).eval().requires_grad_(False)

    def close(self) -> None:
        """Close all data."""
        for data in self._opened:
            data.close()

    def describe(self) -> None:
        """Show both parents."""
        if self.run.main:
            show(zoo.describe(self.models))

    # ----------------------------------------------------------------------------------------------- images

    def training_loader(self, batch_size: int, *, labelled: bool = False) -> Loader:
        """All training images, augmented; `labelled` leaves out those without a label."""
        indices = self.data.indices("train", unlabelled=not labelled)
        model = self.models[0]
        loader = self.data.loader("train", batch_size, train=True, indices=indices, size=model.size)
        if loader.crop is not None or model.size == model.canvas:
            return loader
        return self.data.loader("train", batch_size, train=True, indices=indices, size=model.canvas)

    def loader(self, purpose: str) -> Loader:
        """Images that are searched on (`search`) or those that the result is measured on (`test`): no image is both."""
        data, indices = self._images(purpose)
        few = self.cfg.engine.max_eval_batches
        indices = indices if few is None else indices[: few * self.cfg.eval_batch_size]
        size = self.models[0].canvas
        return data.loader(SPLIT, self.cfg.eval_batch_size, train=False, indices=indices, size=size)

    def _images(self, purpose: str) -> tuple[Data, np.ndarray]:
        if self.search_data is not None:
            data = self.search_data if purpose == "search" else self.data
            return data, data.indices(SPLIT)
        indices, labels = self.data.indices(SPLIT), self.data.labels(SPLIT)
        seed = self.data.settings.fraction_seed
        test, search = stratified(labels, self.cfg.search_fraction, seed, "search_fraction")
        return self.data, indices[search if purpose == "search" else test]

    def said(self, net: Supernetwork, genotypes: Sequence[np.ndarray], purpose: str) -> Iterator[Predictions]:
        """What each of the networks says about the images of a purpose, some of them in one pass."""
        loader = self.loader(purpose)
        for start in range(0, len(genotypes), self.cfg.eval_batch_networks):
            some = genotypes[start : start + self.cfg.eval_batch_networks]
            found = predict(_Many(net, some), loader, precision=self.cfg.engine.precision)
            for logits in found.logits.unflatten(1, (len(some), -1)).unbind(1):
                yield found._replace(logits=logits)


class _Many(nn.Module):
    """Logits [B, G C] of several genotypes."""

    def __init__(self, net: Supernetwork, genotypes: Sequence[np.ndarray]) -> None:
        super().__init__()
        self.net, self.plan = net, net.plan(genotypes)

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat(self.net.logits(self.plan, images), 1)
