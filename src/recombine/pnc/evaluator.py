"""Predictions on the images of target and sources."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from recombine.data import Data
from recombine.data.mixed import LabelOffsetLoader
from recombine.engine.evaluate import Predictions, predict
from recombine.models import Model
from recombine.pnc.data import CloneData
from recombine.pnc.local.neighbourhood import Neighbourhood
from recombine.pnc.settings import PncSettings, SimilaritySettings
from recombine.run.run import Run

__all__ = ["CloneEvaluator"]


@dataclass(frozen=True)
class CloneEvaluator:
    """How networks are evaluated and compared."""

    canvas: int
    """Pixels of images for networks in the joint label space: as the target takes them."""
    batch_size: int
    precision: str
    cache: Path
    """For predictions of networks that do not change."""
    seed: int
    neighbourhood: Neighbourhood
    similarity: SimilaritySettings | None
    """How module and source are compared; None: not at all."""

    @classmethod
    def from_settings(cls, settings: PncSettings, run: Run, target: Model) -> CloneEvaluator:
        """The evaluator of a run."""
        neighbourhood = Neighbourhood.of(settings.lime, "lime")
        options = (target.canvas, settings.eval_batch_size, settings.engine.eval_precision, run.cache, run.seed)
        return cls(*options, neighbourhood, settings.similarity)

    def predict_alone(self, model: Model, data: Data) -> Predictions:
        """Logits of a frozen network on the test images of its own classes; computed once."""
        loader = data.loader("test", self.batch_size, train=False, indices=None, size=model.canvas)
        return predict(model, loader, self.cache, precision=self.precision)

    def predict_module(self, module: nn.Module, source: Model, data: Data) -> Predictions:
        """Logits of a module on the test images of all classes of the source, as the source takes them."""
        loader = data.loader("test", self.batch_size, train=False, indices=None, size=source.canvas)
        return predict(module, loader, precision=self.precision)

    def predict_target(self, net: nn.Module, data: CloneData, split: str) -> Predictions:
        """Logits of a network in a joint label space on the target's own images of `test` or `select`."""
        loader = data.eval_loader(data.target, split, self.batch_size, self.canvas)
        return predict(net, loader, precision=self.precision)

    def predict_cloned(self, net: nn.Module, data: CloneData, split: str, offset: int) -> Predictions:
        """The same on the cloned classes, which begin at `offset` of the outputs."""
        loader = data.eval_loader(data.cloned, split, self.batch_size, self.canvas)
        return predict(net, LabelOffsetLoader(loader, offset), precision=self.precision)

    def predict_joint(self, net: nn.Module, data: CloneData, split: str) -> tuple[Predictions, Predictions]:
        """Both, of a network that knows the target's classes and those of one source."""
        return self.predict_target(net, data, split), self.predict_cloned(net, data, split, data.target.classes)
